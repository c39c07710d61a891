"""One run of the graph: its parameters are kept as ``params.yaml`` in its folder, and read from there.

The command that repeats the run by hand is printed first, what came of it last, in a line that `graph` shows.

python -m rqlib.workbook.batch NOTEBOOK OUT VALUES      VALUES: the parameters as JSON; OUT lies in the run's folder
"""

import json
import sys
from pathlib import Path

from rqlib.core import files, plain_yaml
from rqlib.workbook import report, run
from rqlib.workbook.graph import MARK


def in_a_line(folder: Path) -> str:
    """``02_quantize digits-natural: ANSWER (0:14)``: a finished run; the time is in minutes and seconds."""
    record = files.load_json(folder / "run.json")
    minutes, seconds = divmod(round(record["seconds"]), 60)
    return f"{record['notebook']} {folder.name}: {record['answer'] or 'done'} ({minutes}:{seconds:02})"


def main(arguments: list[str] | None = None) -> None:
    """The command line: as `run.main` with the parameters from the file, and a report beside the notebook."""
    notebook, out, values = sys.argv[1:] if arguments is None else arguments
    folder = Path(out).parent
    files.save_text(folder / "params.yaml", plain_yaml.dump(json.loads(values)))
    print(f"by hand: {report.command(notebook, out)}", flush=True)
    try:  # what is printed after it begins a line of its own, because a progress bar may stand there
        run.main([notebook, out, "-f", str(folder / "params.yaml"), "--report", str(folder / "report.html")])
    except SystemExit as stop:
        print(f"\n{MARK}{stop.code if isinstance(stop.code, str) else f'{folder} was stopped'}", flush=True)
        raise
    if (folder / "run.json").is_file():  # a notebook without a `workbook.Run` leaves none
        print(f"\n{MARK}{in_a_line(folder)}", flush=True)


if __name__ == "__main__":
    main()
