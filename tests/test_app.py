"""The page's program: its options, its exit codes, and what it serves on a Space."""

import json
import logging
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gradio.utils import get_upload_folder

import app
from live2diff.cluster import drain
from live2diff.serving import working_size
from live2diff.serving.engine import Engine
from live2diff.serving.limits import VisitorLimits
from live2diff.ui import examples


class NoMemory:
    """A pipeline that needs more memory than there is."""

    config = SimpleNamespace(size=256)

    def stream(self, **_: object) -> None:
        return self.unet

    @property
    def unet(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.60 GiB.")


@pytest.fixture(autouse=True)
def temporary_files(monkeypatch, tmp_path):
    """Keep the folder that `main` sets for uploads from the tests that follow in this process."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def on_space(monkeypatch):
    monkeypatch.setattr(app, "on_zero_gpu", lambda: True)
    monkeypatch.setattr(app, "start_fitting", None)  # there is no GPU yet
    monkeypatch.setenv("LIVE2DIFF_OPTIONS", "--model live2diff --style 'ink' --streams 3 --no-safety-checker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--styles", "no-such-file.json"], "no-such-file.json"),
        (["--model", "nano", "--visits-per-address", "0"], "must be above 0"),
        (["--model", "nano", "--eager", "--size", "4096"], "size 4096 is out of range"),
        (["--model", "nano", "--eager", "--steps", "9"], "steps is 9; it must be 1, 2, 3 or 4"),
    ],
)
def test_bad_options_end_in_one_line_and_code_2(arguments, message, capsys):
    assert app.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--host", "203.0.113.7", "--host is an address of this machine"),
        ("--host", "no such host", "--host is an address of this machine"),
        ("--host", "a..b", "--host is an address of this machine"),
        ("--port", "taken", "--port a free one"),
        ("--port", "70000", "'70000' is no port; give a number from 1 to 65535"),
        ("--port", "0", "'0' is no port"),
        ("--port", "-1", "'-1' is no port"),
    ],
)
def test_an_unusable_address_is_refused_before_a_model_is_loaded(option, value, message, monkeypatch, capsys):
    monkeypatch.setattr(app, "load_model", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        value = str(taken.getsockname()[1]) if value == "taken" else value
        assert exit_code(f"{option}={value}") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def exit_code(*arguments: str) -> int | str | None:
    """Return the exit code of the page's program, whoever ends it."""
    try:
        return app.main(arguments)
    except SystemExit as end:  # how argparse ends
        return end.code


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_an_address_of_this_machine_is_accepted(host):
    app.check_address(host, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--style 'pencil", "LIVE2DIFF_OPTIONS cannot be read, no closing quotation: --style 'pencil"),
        ("--size big", "LIVE2DIFF_OPTIONS is wrong: argument --size: 'big' is neither a number nor auto"),
    ],
)
def test_options_of_the_operator_that_cannot_be_read_end_in_one_line(options, message, monkeypatch, capsys):
    monkeypatch.setenv("LIVE2DIFF_OPTIONS", options)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"app.py: error: {message}" in line


@pytest.mark.parametrize("proxies", ["two", "", "1.5"])
def test_a_number_of_proxies_that_cannot_be_read_ends_in_one_line_and_code_2(proxies, monkeypatch, capsys):
    monkeypatch.setattr(app, "load_model", None)
    monkeypatch.setenv("LIVE2DIFF_TRUSTED_PROXIES", proxies)
    assert app.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"LIVE2DIFF_TRUSTED_PROXIES is {proxies!r}. Set it to a whole number" in line


@pytest.mark.parametrize("main", [app.main, drain.main], ids=["page", "drain"])
def test_a_cluster_without_ray_ends_in_one_line_and_code_2(main, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert main(["--cluster", "local"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install '.[cluster]' in the repository's folder" in line


@pytest.mark.parametrize("where", ["loading", "measuring"])
def test_too_little_gpu_memory_ends_in_one_line_and_code_2(where, monkeypatch, capsys):
    monkeypatch.setattr(app, "load_model", lambda _: NoMemory().unet if where == "loading" else NoMemory())
    assert app.main(["--model", "live2diff"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not enough memory" in line and "--small-memory" in line


def test_a_model_that_fails_otherwise_is_not_explained_away(monkeypatch):
    def load_model(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(app, "load_model", load_model)
    with pytest.raises(RuntimeError, match="a bug"):
        app.main([])


def test_elsewhere_than_on_zero_gpu_importing_loads_nothing():
    assert app.space_engine() is None and app.ENGINE is None


def test_a_space_loads_the_model_of_its_options(on_space, tiny_pipeline, monkeypatch):
    loaded = {}

    def load_model(options, **settings):
        loaded.update(vars(options) | settings)
        return tiny_pipeline

    monkeypatch.setattr(app, "load_model", load_model)
    app.space_engine().shutdown()
    assert (loaded["model"], loaded["style"], loaded["safety_checker"]) == ("live2diff", "ink", False)
    assert loaded["device"] == "cuda" and loaded["eager"]


@pytest.mark.parametrize(
    "error",
    [AttributeError("'tuple' object has no attribute 'numel'"), OSError("no network"), KeyError("unet")],
)
def test_a_space_whose_model_cannot_be_loaded_serves_nano_and_says_so(
    error, on_space, tiny_pipeline, monkeypatch, caplog
):
    def load_model(options, **settings):
        if options.model != "nano":
            raise error
        assert options.style is None and settings == {"device": "cuda", "eager": True}
        return tiny_pipeline

    monkeypatch.setattr(app, "load_model", load_model)
    monkeypatch.setattr(tiny_pipeline, "about", tiny_pipeline.about)
    with caplog.at_level(logging.ERROR, logger="live2diff"):
        engine = app.space_engine()
    assert "nano" in engine.about and str(error) in engine.about
    assert str(error) in caplog.text
    engine.shutdown()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--style 'pencil", "LIVE2DIFF_OPTIONS cannot be read"),
        ("--size big", "LIVE2DIFF_OPTIONS is wrong: argument --size: 'big' is neither a number nor auto"),
        ("--turn-seconds long", "argument --turn-seconds: invalid float value: 'long'"),
        ("--st pencil", "ambiguous option: --st"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
    ],
)
def test_a_space_whose_options_cannot_be_read_serves_nano_and_says_so(
    options, reason, on_space, tiny_pipeline, monkeypatch
):
    monkeypatch.setenv("LIVE2DIFF_OPTIONS", options)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    loaded, served = [], []
    monkeypatch.setattr(app, "load_model", lambda options, **_: loaded.append(options.model) or tiny_pipeline)
    monkeypatch.setattr(tiny_pipeline, "about", tiny_pipeline.about)
    engine = app.space_engine()
    assert loaded == ["nano"] and reason in engine.about
    monkeypatch.setattr(app, "ENGINE", engine)
    monkeypatch.setattr(app, "serve", lambda engine, *_, **options: served.append(engine))
    monkeypatch.setattr(app, "serve_until_stopped", lambda *_: None)
    assert app.main() == 0 and served == [engine]
    engine.shutdown()


@pytest.mark.parametrize("arguments", [[], ["--size", "auto", "--steps", "auto"]])
def test_the_working_size_is_measured_by_default_and_printed(arguments, tiny_pipeline, monkeypatch, capsys):
    ladder = working_size.Ladder((32, 48), (1, 2), 1e-6, 2.0)  # any machine is that fast
    monkeypatch.setattr(working_size, "LADDERS", {32: ladder})
    engine = started(arguments, tiny_pipeline, monkeypatch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "size" in line]
    assert engine.size == 48 and engine.about.endswith(line)
    assert line.startswith("Working size: 48, 2 denoising steps, at ") and "--size and --steps" in line


def test_a_size_that_is_given_is_not_measured(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(working_size, "measure", None)
    engine = started(["--size", "48", "--steps", "1"], tiny_pipeline, monkeypatch)
    assert engine.size == 48 and "size" not in engine.about
    with pytest.raises(SystemExit):
        app.build_parser().parse_args(["--size", "640x360"])  # cameras have aspects of their own


def started(arguments: list[str], pipeline, monkeypatch) -> Engine:
    """Start and end an engine on the pipeline, which is left as it was."""
    monkeypatch.setattr(app, "load_model", lambda _: pipeline)
    about, size, indices = pipeline.about, pipeline.config.size, pipeline.config.t_index_list
    engine = app.start_engine(app.build_parser().parse_args(arguments))
    engine.shutdown()
    pipeline.about = about
    pipeline.register_to_config(size=size, t_index_list=indices)
    return engine


def test_of_a_shared_temporary_folder_only_the_part_of_the_page_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "MOST_BYTES", 500)
    (tmp_path / "empty").mkdir()
    (tmp_path / "thesis.docx").write_bytes(bytes(1000))
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))
    queue = app.clip_queue(engine=None)
    upload = Path(get_upload_folder(), "hash", "clip.mp4")
    upload.parent.mkdir(parents=True)
    upload.write_bytes(bytes(1000))
    queue.tidy()
    assert (tmp_path / "empty").exists() and (tmp_path / "thesis.docx").exists()
    assert not upload.exists() and queue.folder.is_relative_to(tmp_path)
    assert app.clip_queue(engine=None).folder == queue.folder


def test_the_limits_are_on_the_page(engine):
    limits = VisitorLimits(visits=7, clips=5)
    config = json.dumps(app.build(engine, limits).get_config_file(), default=str)
    assert "At most 7 visits at once" in config and "At most 5 clips at once" in config


def test_the_gallery_is_empty_without_the_examples_of_the_repository(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(examples, "EXAMPLES", tmp_path)
    page = app.build(engine)
    assert "examples" not in {block.elem_id for block in page.blocks.values()}
