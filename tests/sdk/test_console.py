"""What commands print: values from outside are text, and identifiers are whole."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.progress import Progress

import vtryon
import vtryon_mesh
import vtryon_services
from vtryon.checks import Finding
from vtryon.cli import doctor, workflow
from vtryon.cli.app import app, load_commands, run, run_command
from vtryon.cli.console import PlainConsole, text_column, whole_table
from vtryon.cli.failures import report
from vtryon.cli.progress import describe_fit
from vtryon.workflow.request import NodeReport
from vtryon_mesh.envoy.pieces import Address
from vtryon_mesh.local import cli as up
from vtryon_mesh.local.layout import Process
from vtryon_mesh.local.supervise import Status

BAD = "a [/b] [bold]c[/] :smile: [red:blue:0.5]"
NAME = "[bold]c [red:blue:0.5] :smile:"  # without a slash, for paths
PACKAGES = [Path(one.__file__).parent for one in (vtryon, vtryon_services, vtryon_mesh)]
MARKUP = re.compile(
    r"""(?<!Plain)\bConsole\(|\bTextColumn\(|from_markup|markup=True|\[/?(red|green|bold|dim|\{colou?r\})\]"""
)


def shown(width: int = 80) -> tuple[PlainConsole, io.StringIO]:
    file = io.StringIO()
    return PlainConsole(file=file, width=width), file


def test_every_way_to_print_a_value_leaves_it_as_it_is() -> None:
    console, file = shown(300)
    table = whole_table("name", BAD)
    table.add_row(BAD, "x")
    console.print(BAD)
    console.say(BAD, style="red")
    console.say_error(BAD)
    console.show_table(table)
    with Progress(text_column("{task.description}"), console=console) as progress:
        progress.add_task(BAD)
    with console.status(BAD) as status:
        status.update(BAD)
    assert file.getvalue().count(BAD) >= 6
    assert "\x1b" not in file.getvalue()


def test_escape_sequences_of_a_value_do_not_reach_the_terminal() -> None:
    console, file = shown()
    for print_value in (console.print, console.say, console.say_error):
        print_value("wear\x1b[2J\x9b\x07 it\n")
    assert not set("\x1b\x9b\x07") & set(file.getvalue())
    assert file.getvalue().count(" it\n") == 3


def test_an_identifier_is_whole_however_narrow_the_terminal_is() -> None:
    console, file = shown(40)
    table = whole_table("job", "state", "why", wrapped=("why",))
    table.add_row("j" * 70, "succeeded", "a long reason " * 10)
    console.show_table(table)
    assert "j" * 70 in file.getvalue()
    assert "succeeded" in file.getvalue()
    assert console.width == 40


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_value_is_cut_in_the_tables_of_doctor_import_and_up(width: int) -> None:
    at = Address("127.0.0.1", 54321)
    process = Process("sampling-2-envoy", ("true",), {}, (at,), 1, at, None)
    rows = {
        doctor._table: [Finding("triton", False, f"/opt/{'f' * 50}", remedy="r" * 50)],
        workflow._table: [NodeReport(BAD, "t" * 50, "w" * 50)],
        up._table: [Status(process, "RUNNING", 4321, 12.0, 3, healthy=True)],
    }
    values = {
        doctor._table: ["triton", "f" * 50, "r" * 50],
        workflow._table: [BAD, "t" * 50, "w" * 50],
        up._table: ["sampling-2-envoy", "healthy", "127.0.0.1:54321", "4321"],
    }
    for make, lines in rows.items():
        console, file = shown(width)
        console.show_table(make(lines))
        said = file.getvalue()
        assert "[green]" not in said
        assert "…" not in said
        for value in values[make]:
            assert value in said


def test_no_help_and_no_message_of_an_option_is_read_as_markup() -> None:
    load_commands([])
    apps = [app]
    for one in apps:  # grows while it is walked
        apps += [group.typer_instance for group in one.registered_groups if group.typer_instance]
    assert len(apps) >= 11
    assert [one.info.help for one in apps if one.rich_markup_mode is not None] == []


def test_the_last_line_of_a_failed_command_has_no_control_characters(capsys) -> None:
    assert report(vtryon.RequestError("no such file: \x1b[2Jx\x9b")) == 2
    assert not set("\x1b\x9b") & set(capsys.readouterr().err)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_command_has_a_console_with_markup(package: Path) -> None:
    found = [
        f"{path.relative_to(package)}:{number}"
        for path in package.rglob("*.py")
        if path.name != "console.py" and "v1" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARKUP.search(line) and not line.lstrip().startswith("#")
    ]
    assert not found


COMMANDS = {
    "a missing picture": ["try-on", f"{NAME}.png", "g.png", "-o", "o.png"],
    "a result of another kind": ["try-on", "p.png", "g.png", "-o", f"o{NAME}.tiff"],
    "a missing request": ["try-on", "p.png", "g.png", "-o", "o.png", "--request", NAME],
    "a missing folder": ["batch", NAME, "out"],
    "a job's result": ["jobs", "fetch", "id", "-o", NAME * 50, "--endpoint", "127.0.0.1:1"],
    "a missing tensor": ["stage", "decode", NAME, "-o", "o.png"],
    "a missing graph": ["workflow", "import", NAME],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_in_brackets_is_shown_in_errors(
    name: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTRYON_BACKEND", "scripted")
    load_commands(COMMANDS[name])
    assert run_command(COMMANDS[name]) in {1, 2}
    said = " ".join(capsys.readouterr().err.split())
    assert "unexpected" not in said
    assert NAME in said


def test_a_prompt_in_brackets_is_shown_in_the_table_of_an_import(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    nodes = {
        "1": {"class_type": BAD, "inputs": {}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(nodes))
    monkeypatch.setenv("COLUMNS", "300")
    words = ["workflow", "import", str(path)]
    load_commands(words)
    assert run_command(words) == 2
    assert BAD in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"), [("AttributeError('x')", 1), ("KeyboardInterrupt", 130)]
)
def test_a_subcommand_whose_module_fails_to_load_ends_in_one_line(
    raised: str, code: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "broken_command.py").write_text(f"raise {raised}\n")
    metadata = tmp_path / "broken-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[vtryon.commands]\nbroken = broken_command:app\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "argv", ["vtryon", "broken"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    log = tmp_path / "state" / "vtryon" / "errors.log"
    if code == 1:
        assert said == f"error: unexpected AttributeError; the details are in {log}\n"


def test_a_note_is_said_of_a_picture_that_keeps_its_size() -> None:
    fit = vtryon.Fit("garment", 96, 128, 96, 128, note="ComfyUI would scale it to 90×120")
    assert describe_fit(fit) == "garment stays 96×128; ComfyUI would scale it to 90×120"
