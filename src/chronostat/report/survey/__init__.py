"""What ``chronostat measure`` shows: rows of text for the terminal and the page, and the page with its picture."""

from chronostat.report.survey.page import survey_page
from chronostat.report.survey.rows import (
    Row,
    condition_rows,
    judged,
    notes,
    stage_rows,
    summary_rows,
    title,
    verdict_rows,
)

__all__ = [
    "Row",
    "condition_rows",
    "judged",
    "notes",
    "stage_rows",
    "summary_rows",
    "survey_page",
    "title",
    "verdict_rows",
]
