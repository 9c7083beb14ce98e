"""The page of a survey: one file that needs no network."""

from datetime import UTC, datetime

from chronostat.records import Source
from chronostat.report.survey.rows import condition_rows, judged, notes, stage_rows, summary_rows, title, verdict_rows
from chronostat.report.survey.waterfall import waterfalls
from chronostat.report.templating import environment
from chronostat.report.text import SOURCE_DEFINITIONS
from chronostat.studies.survey import Survey
from chronostat.version import VERSION


def survey_page(survey: Survey, command: str) -> str:
    """The HTML of a survey.

    Args:
        survey: what was found.
        command: that made it.
    """
    sources: set[Source] = {column.source for column in survey.columns}
    return (
        environment()
        .get_template("survey.html.j2")
        .render(
            title=f"Chronostat: {' and '.join(dict.fromkeys(column.model for column in survey.columns))}",
            caption=title(survey),
            sources={source: SOURCE_DEFINITIONS[source] for source in sorted(sources)},
            names=[column.name for column in survey.columns],
            stages=stage_rows(survey),
            summary=summary_rows(survey),
            verdicts=verdict_rows(survey),
            conditions=condition_rows(survey),
            notes=list(notes(survey)),
            judged=judged(survey),
            waterfalls=waterfalls(survey.columns),
            command=command,
            written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            version=VERSION,
        )
    )
