"""The templates of the page and the picture."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Escapes what it fills in; a name that is missing is an error."""
    return Environment(
        loader=PackageLoader("chronostat", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
