"""The command line: `anabranch --help`. Each command lives in a file of `anabranch/commands/`."""

import os
import sys

import typer

from common.errors import AnabranchError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="anabranch",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A recommender that keeps learning: federated LoRA under differential privacy, and every click at once.",
    epilog="Example:  anabranch demo --quick",
)


def _register() -> None:
    """Attach every command."""
    from anabranch.commands import (
        data,
        demo,
        deploy,
        doctor,
        evaluate,
        keys,
        ledger,
        model,
        recommend,
        serve,
        simulate,
        stream,
    )

    app.command("demo")(demo.demo)
    app.command("simulate")(simulate.simulate)
    app.command("serve")(serve.serve)
    app.command("recommend")(recommend.recommend)
    app.command("broker")(stream.broker)
    app.command("doctor")(doctor.doctor)
    app.add_typer(data.app, name="data")
    app.add_typer(stream.app, name="stream")
    app.add_typer(model.app, name="model")
    app.add_typer(keys.app, name="keys")
    app.add_typer(ledger.app, name="ledger")
    app.add_typer(evaluate.app, name="evaluate")
    app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Run the command line; exit with 0, 1 (failed), 2 (usage) or 130 (Ctrl-C)."""
    # no telemetry and no surprise downloads; a user who set these keeps what they set
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)
    _register()
    try:
        app(standalone_mode=True)
    except AnabranchError as error:
        sys.stderr.write(f"anabranch: {error}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        # typer turns Ctrl-C into an exit of its own, without a word
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        sys.stderr.write("anabranch: interrupted; what was stored stays usable, the same command goes on from there\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
