"""What more than one question needs: cells, blocks, models, measured calls, recordings and result files."""
