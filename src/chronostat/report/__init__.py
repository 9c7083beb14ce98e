"""One run as a page that opens anywhere, and its main figure as a picture."""

from chronostat.report.run.page import write_report
from chronostat.report.run.picture import write_picture

__all__ = ["write_picture", "write_report"]
