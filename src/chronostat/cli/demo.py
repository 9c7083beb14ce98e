"""chronostat demo, as it is typed."""

from chronostat.cli.options import RunDir, Seed, Sets, command_line, new_folder
from chronostat.cli.terminal import for_people, out
from chronostat.errors import ConfigError

DEMO_VALUES = (
    "seconds=340.0",  # with loading and the report 6.5 minutes at most where an execution takes 0.17 s or less
    "model.device=cpu",  # the bundled model is so small that a GPU waits for its host, whatever the setting
)
# what a caller waits for has parts that no setting shortens
SERVED_VALUES = ("validation.mean_budgets=[0.5,0.6,0.7]", "validation.deadlines=[0.6,0.75,0.9]")


def demo(run_dir: RunDir = None, seed: Seed = None, overrides: Sets = None) -> None:
    """The main job on the bundled model: calibrate, select, train, validate, write the report. Says first how long."""
    folder = run_dir or new_folder("demo")
    with for_people(folder):
        from chronostat.config import load_config
        from chronostat.records import SERVED_METRICS

        own = overrides or ()
        config = load_config(None, [*DEMO_VALUES, *own], seed=seed)
        if config.measure.latency_metric in SERVED_METRICS:
            config = load_config(None, [*DEMO_VALUES, *SERVED_VALUES, *own], seed=seed)
        if config.model.path or config.data.path:
            raise ConfigError("demo runs the bundled model on its own task; for yours: chronostat train CONFIG.toml")
        from chronostat.cli.actions import demo as action

        action.demo(config, folder, command_line(), out)
