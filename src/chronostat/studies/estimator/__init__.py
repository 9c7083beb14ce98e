"""When nothing could be measured: latencies estimated from stored measurements. A measured run never comes here."""
