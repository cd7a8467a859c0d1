"""The command `driftline backtest`: its arguments, and nothing else. It loads what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from streams.running import settings_here
from streams.task import load_task


def backtest(
    task: Annotated[str, typer.Argument(help="A built-in task or the path of a task file.")],
    file: Annotated[
        Path | None, typer.Argument(help="Parquet, CSV or JSON lines; or give --simulate.")
    ] = None,
    simulate: Annotated[str, typer.Option(help="transactions or clicks: a simulated stream, no file.")] = "",
    events: Annotated[int, typer.Option(help="Events of the simulated stream.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the simulated stream.")] = 1,
    drift: Annotated[
        list[str] | None,
        typer.Option(help="KIND@FRACTION of the simulated stream; may be given several times."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN where the file names a field otherwise.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="static|periodic|continuous|drift|full; several side by side; default: all."),
    ] = None,
    warmup: Annotated[
        float, typer.Option(help="Share of labelled examples to learn from before judging.")
    ] = 0.3,
    batch: Annotated[int, typer.Option(help="Most events of a micro-batch.")] = 256,
    within: Annotated[
        str, typer.Option(help="Most event time of one; default: half the label's window.")
    ] = "",
    refresh: Annotated[
        str, typer.Option(help="Event time between refreshes; default: after each batch.")
    ] = "",
    every: Annotated[
        str,
        typer.Option(help="Event time between the trainings of periodic; default: 7d, at least ten of them."),
    ] = "",
    passes: Annotated[int, typer.Option(help="Passes of each training of periodic.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for backtest.html and backtest.json.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Parquet file for every score of every policy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """What would have been served on a past stream, by policies of learning side by side. No Kafka."""
    import torch

    from streams.backtest import Options, open_source, run_backtest
    from streams.cli import pair

    torch.set_num_threads(1)
    loaded, mapping = load_task(task), dict(pair(text) for text in columns or [])
    source, name, notes = open_source(
        loaded, file, mapping, simulate=simulate, events=events, seed=seed, drift=drift or []
    )
    console = Console(highlight=False, soft_wrap=True)
    for note in () if as_json else notes:
        console.print(f"  note: {note}")
    options = Options(policy or (), warmup, batch, within, refresh, every, passes, out, predictions)
    run_backtest(loaded, source, name, settings_here().secret, options, as_json=as_json, console=console)
