"""The parts of the benchmarks that measure nothing: how they read, judge, tell and draw what was measured."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from io import BytesIO
from pathlib import Path
from statistics import median

import pytest
from PIL import Image, ImageFilter

sys.path.append(str(Path(__file__).parent.parent))  # they are no part of the package

from benchmarks import load, machine, photographs, plot, results, table
from benchmarks.families import FAMILIES, QUICK, catalogue
from benchmarks.families.memory import bytes_of
from benchmarks.likeness import ssim
from benchmarks.load import Load, LoadFailed, NothingAnswered, Requests
from benchmarks.machine import Cores, NotThere, choose_cores
from benchmarks.table import TIMES, Row, Series, Target, figure, ratio, speedup, together

OURS = Series("ours", "/s", (90.0, 110.0, 100.0))
THEIRS = Series("theirs", "/s", (100.0, 100.0, 125.0))


# ── Judging ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ratio_is_judged_by_the_median_of_what_each_round_says() -> None:
    row = ratio("uploads", OURS, THEIRS, Target(0.9))
    assert row.samples == (0.9, 1.1, 0.8)
    assert row.median == 0.9
    assert row.met is True
    assert row.spread == "0.800..1.10"
    assert ratio("uploads", OURS, THEIRS, Target(0.91)).met is False


def test_a_target_may_be_an_upper_bound() -> None:
    row = ratio("CPU", OURS, THEIRS, Target(1.0, at_most=True))
    assert row.met is True
    assert ratio("CPU", THEIRS, OURS, Target(1.0, at_most=True)).verdict == "MISSED"


def test_without_a_target_nothing_is_met_or_missed() -> None:
    row = ratio("uploads", OURS, THEIRS, None)
    assert row.met is None
    assert row.verdict == ""


def test_a_goal_is_shown_and_does_not_judge() -> None:
    target = Target(0.35, goal=0.5)
    assert target.is_met(0.4)
    assert target.text(TIMES) == f"≥ 0.35{TIMES} (goal 0.5{TIMES})"
    assert Target(16, at_most=True).text("MB") == "≤ 16 MB"


def test_how_many_times_as_long_theirs_takes_shows_ours_first() -> None:
    row = speedup("list", Series("ours", "ms", (2.0,)), Series("scan", "ms", (3000.0,)), Target(1000))
    assert row.median == 1500
    assert (row.ours, row.theirs) == ("2.00 ms", "3,000 ms")


def test_a_mean_of_ratios_is_the_ratio_of_geometric_means() -> None:
    ours = [Series("a", "ms", (10.0, 20.0)), Series("b", "ms", (40.0, 20.0))]
    theirs = [Series("a", "ms", (20.0, 20.0)), Series("b", "ms", (20.0, 20.0))]
    row = ratio("sizes", together("ours", ours), together("theirs", theirs), None)
    assert row.samples == pytest.approx((1.0, 1.0))


def test_a_peer_that_is_not_there_is_named_and_not_skipped() -> None:
    row = ratio("0.8 MB : nginx", OURS, "nginx (Debian: apt-get install nginx-light)", Target(0.5))
    assert row.met is None
    for text in (table.plain([row]), table.markdown([row]), plot.svg("Delivery", "", [row])):
        assert "0.8 MB : nginx" in text
        assert "not there: nginx (Debian: apt-get install nginx-light)" in text


# ── Telling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_shows_both_sides_the_spread_the_target_and_the_verdict() -> None:
    heading, line = table.plain([ratio("uploads", OURS, THEIRS, Target(1.0))]).splitlines()
    assert heading.split() == ["what", "ours", "theirs", "result", "least..most", "target"]
    assert re.split(" {2,}", line) == [
        "uploads",
        "100 /s",
        "100 /s",
        f"0.900{TIMES}",
        "0.800..1.10",
        f"≥ 1{TIMES}",
        "MISSED",
    ]


def test_a_table_in_a_document_has_as_many_cells_in_every_line() -> None:
    rows = [ratio("uploads", OURS, THEIRS, Target(1.0)), figure("start", Series("start", "s", (0.5,)), None)]
    lines = table.markdown(rows).splitlines()
    assert {line.count("|") for line in lines} == {len(table.HEADINGS) + 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (100.0, "100"), (99.94, "99.9"), (3.14159, "3.14"), (0.5, "0.500"), (-0.00042, "-0.0004")],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert table.number(value) == text


def test_a_row_comes_back_from_json_as_it_went() -> None:
    rows = [
        ratio("uploads", OURS, THEIRS, Target(0.9, goal=1.0)),
        ratio("uploads", OURS, "filestore", Target(1.1)),
        figure("memory", Series("memory", "MB", (57.25,)), Target(200, at_most=True)),
    ]
    assert [Row.from_json(json.loads(json.dumps(row.to_json()))) for row in rows] == rows


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def a_result(rows: list[Row]) -> dict[str, object]:
    return {
        "title": "Uploads",
        "subtitle": "requests a second",
        "when": "2026-11-20T12:00:00+00:00",
        "rounds": 5,
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 4, "file_system": "ext4"},
        "versions": {"commit": "abc1234"},
        "rows": [row.to_json() for row in rows],
        "series": [OURS.to_json()],
    }


def test_what_is_kept_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    result = a_result([ratio("uploads", OURS, THEIRS, Target(0.9))])
    results.keep("uploads", result)
    assert results.kept(["delivery", "uploads"]) == {"uploads": result}
    assert '"samples": [ 90.0, 110.0, 100.0 ]' in (tmp_path / "uploads.json").read_text()


def test_a_document_gets_the_tables_between_its_marks_and_keeps_the_rest() -> None:
    result = a_result([ratio("uploads", OURS, THEIRS, Target(0.9))])
    text = f"# Before\n{results.BEGIN}\nold\n{results.END}\n# After\n"
    document = results.document(text, {"uploads": result})
    assert document.startswith(f"# Before\n{results.BEGIN}\n\n### Uploads\n")
    assert document.endswith(f"\n{results.END}\n# After\n")
    assert "old" not in document
    assert results.document(document, {"uploads": result}) == document


def test_the_document_shows_the_results_that_are_kept() -> None:
    document = results.DOCUMENT.read_text(encoding="utf-8")
    assert results.document(document, results.kept(FAMILIES)) == document


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_result_and_a_plot_whose_medians_are_those_of_its_samples(name: str) -> None:
    result = results.kept([name])[name]
    assert result["title"] == FAMILIES[name].TITLE
    assert result["rounds"] >= 5
    for row in result["rows"]:
        assert row.get("missing") or row["median"] == pytest.approx(median(row["samples"]), rel=1e-3)
    picture = (results.RESULTS / f"{name}.svg").read_text(encoding="utf-8")
    assert picture == plot.svg(result["title"], result["subtitle"], results.rows_of(result))


def test_a_quick_run_is_of_families_there_are() -> None:
    assert set(QUICK) < set(FAMILIES)


# ── Drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SVG = "{http://www.w3.org/2000/svg}"


def test_a_plot_is_an_svg_with_a_dot_for_every_row_and_a_bar_for_every_target() -> None:
    rows = [
        ratio("met", OURS, THEIRS, Target(0.5)),
        ratio("missed", OURS, THEIRS, Target(2.0)),
        ratio("<plain> & simple", OURS, THEIRS, None),
        figure("memory", Series("memory", "MB", (50.0, 60.0)), Target(200, at_most=True)),
    ]
    picture = ElementTree.fromstring(plot.svg("Title", "subtitle", rows))
    assert [dot.get("class") for dot in picture.iter(f"{SVG}circle")] == ["met", "missed", "plain", "met"]
    assert len([line for line in picture.iter(f"{SVG}line") if line.get("class") == "bound"]) == 3
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"Title", "subtitle", "met", "missed", "<plain> & simple", "memory"} <= set(texts)


def test_everything_drawn_lies_within_the_picture() -> None:
    far_apart = [ratio(str(n), Series("", "", (10.0**n,)), Series("", "", (1.0,)), None) for n in range(-2, 4)]
    below_nothing = [Row("SSIM", Target(-0.005), "", (-0.0004,))]
    equal_to_nothing = [Row("none", None, "MB", (0.0, 0.0))]
    for rows in (far_apart, below_nothing, equal_to_nothing):
        picture = ElementTree.fromstring(plot.svg("Title", "", rows))
        assert all(
            plot.MARGIN + plot.LABELS <= float(dot.attrib["cx"]) <= plot.MARGIN + plot.LABELS + plot.TRACK
            for dot in picture.iter(f"{SVG}circle")
        )


def test_a_plot_has_colours_of_its_own_for_dark_pages() -> None:
    picture = plot.svg("Title", "", [ratio("uploads", OURS, THEIRS, Target(0.5))])
    light, dark = picture.split("prefers-color-scheme: dark")
    assert set(plot.LIGHT) == set(plot.DARK)
    assert all(colour in light for colour in plot.LIGHT.values())
    assert all(colour in dark for colour in plot.DARK.values())


# ── The load ────────────────────────────────────────────────────────────────────────────────────────────────────────

SAID = 'Running 1s test\n  1 threads\nwrk says {"requests": 412, "microseconds": 1002000, "refused": 0, "not_ok": %d}\n'


def test_wrk_is_read_as_requests_and_seconds() -> None:
    assert load.read(SAID % 0) == Load(412, 1.002)


def test_a_run_in_which_requests_failed_counts_for_nothing() -> None:
    with pytest.raises(LoadFailed, match="of 412 requests: 3 not_ok"):
        load.read(SAID % 3)


def test_a_run_in_which_nothing_was_answered_is_told_from_one_that_failed() -> None:
    with pytest.raises(NothingAnswered):
        load.read('wrk says {"requests": 0, "microseconds": 1000000, "refused": 0}')


def test_a_wrk_that_says_nothing_is_quoted() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        load.read("unable to connect to 127.0.0.1:1")


def test_a_script_posts_a_body_to_one_path_or_asks_for_many_in_turn(tmp_path: Path) -> None:
    posting = Requests(tmp_path, ["/upload"], headers={"Content-Type": "image/jpeg"}, body=b"bytes")
    asking = Requests(tmp_path, ["/1", "/2"])
    script = posting.script.read_text()
    assert 'wrk.method = "POST"' in script
    assert 'wrk.headers["Content-Type"] = "image/jpeg"' in script
    assert "function request" not in script
    assert posting.script.with_suffix(".body").read_bytes() == b"bytes"
    assert posting.uploads
    assert "function request" in asking.script.read_text()
    assert asking.script.with_suffix(".paths").read_text() == "/1\n/2\n"
    assert not asking.uploads


# ── The machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_server_and_load_run_on_cores_that_share_nothing_where_there_are_such() -> None:
    threads = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}
    assert choose_cores({0, 1, 2, 3}, threads) == Cores(server=0, load=2)
    assert choose_cores({0, 1}, threads) == Cores(server=0, load=1)
    with pytest.raises(NotThere, match="a second core"):
        choose_cores({0}, threads)


def test_a_program_that_is_not_there_is_named_with_its_package() -> None:
    with pytest.raises(NotThere, match=r"no-such-program \(Debian: apt-get install nothing\)"):
        machine.find("no-such-program", "Debian: apt-get install nothing")


def test_memory_is_read_in_bytes() -> None:
    assert bytes_of("Name:\tpython\nVmHWM:\t  123456 kB\nVmRSS:\t   98765 kB\n", "VmHWM") == 123456 * 1024


# ── The images, and how alike they are ──────────────────────────────────────────────────────────────────────────────


def test_photographs_are_the_same_bytes_each_time_and_as_large_as_they_say() -> None:
    first, second = photographs.SMALL.make(), photographs.SMALL.make()
    assert first == second
    assert 20_000 < len(first) < 22_000
    with Image.open(BytesIO(first)) as image:
        assert (image.format, image.info.get("progressive")) == ("JPEG", None)


def test_ssim_is_one_for_equals_and_falls_with_what_is_lost() -> None:
    picture = photographs.draw(160, 120)
    little, much = (picture.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 4))
    assert ssim(picture, picture) == pytest.approx(1.0)
    assert 0 < ssim(picture, much) < ssim(picture, little) < 1


# ── The library ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_asset_becomes_many_in_order_of_their_ids() -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE assets (id, owner, filename, filename_folded, created_at, updated_at)")
        database.execute("CREATE TABLE storage_totals (storage, assets, bytes)")
        database.execute("INSERT INTO assets VALUES ('0', 'somebody', NULL, NULL, 'then', 'then')")
        database.execute("INSERT INTO storage_totals VALUES ('local', 1, 7)")
        database.commit()
        ids = catalogue.multiply(database, 100)
        rows = database.execute("SELECT id, owner, created_at FROM assets ORDER BY id").fetchall()
        assert [row[0] for row in rows] == [found.hex for found in ids]
        assert len(set(ids)) == 100
        assert {row[1] for row in rows} == {"somebody"}
        assert [row[2] for row in rows] == sorted({row[2] for row in rows})
        assert {found.version for found in ids} == {7}
        assert database.execute("SELECT assets, bytes FROM storage_totals").fetchall() == [(100, 700)]


def test_the_scan_of_sidecars_finds_what_a_library_would(tmp_path: Path) -> None:
    catalogue.write_sidecars(tmp_path, 120)
    newest = catalogue.list_newest(tmp_path)
    assert [image["filename"] for image in newest] == [f"photo {n}.jpg" for n in range(119, 69, -1)]
    found = catalogue.statistics(tmp_path)
    assert (found["count"], found["bytes"]) == (120, sum(20_000 + n for n in range(120)))
    assert (found["oldest"], found["newest"]) == ("2026-01-01T00:00:00+00:00", "2026-01-01T01:59:00+00:00")
