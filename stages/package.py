"""Package the model to deploy: a folder, and the same as .tar.gz, with all that is needed to run it and to trust it.

In it are the model and config.json for OpenVINO Model Server, the settings that its numbers were measured with (inference.json), a model
card (README.md), quantizers.json, a few samples with the outputs to expect, predict.py that runs them, and the SHA-256 of every file.
Nothing is built again; build/ must be what params.yaml says. `package` in params.yaml has the licence and what else the card shows.

Examples:
    python -m stages.package                    # the model of the last stage whose budget holds, else the INT8 model
    python -m stages.package --model fp32       # another one
    cd build/package/* && python predict.py     # does it run here as it did where it was measured?
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import artifacts
from stages.common.errors import UserError
from stages.common.units import plural
from stages.configuration.loading import load_config
from stages.configuration.schema import MODELS, Config
from stages.deployment.deployable import deployable
from stages.deployment.freshness import fresh_config
from stages.stage import alone, fail, only_options, quiet_libraries

NAME = "package"
FOLDER = artifacts.folder(NAME)
PROGRAMS = ("predict.py", "score.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write build/package; 0, or 1 when that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.package", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="what to package; by default what package.model says")
    chosen = only_options(parser, NAME, arguments).model
    quiet_libraries()
    try:
        load_config()  # or there is nothing to lock
        with alone(NAME):
            config = fresh_config()
            package(dataclasses.replace(config, package=dataclasses.replace(config.package, model=chosen or config.package.model)))
    except (UserError, OSError) as error:
        return fail(NAME, error, FOLDER)
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted", file=sys.stderr)
        return 130
    return 0


def package(config: Config) -> None:
    """Write the package, and run its predict.py.

    Raises:
        UserError: there is no such model, or what is packaged does not reproduce what was measured.
    """
    from stages.deployment import archive, card, settings
    from stages.deployment.samples import pack
    from stages.tracking.runs import content_key

    model = deployable(config, config.package.model)
    name = settings.package_name(config, model)
    running = settings.compiled(config, model)
    packed = pack(config, model, running)
    inference = settings.inference(config, name, running) | {"samples": packed.settings()}
    with artifacts.writing(FOLDER) as folder:
        place = folder / name
        version = place / name / str(config.package.version)
        version.mkdir(parents=True)
        for file in ("model.xml", "model.bin"):
            shutil.copyfile(model.folder / file, version / file)
        artifacts.write_json(place / "config.json", settings.server(name, running, inference))
        artifacts.write_json(place / "inference.json", inference)
        artifacts.write_text(place / "README.md", card.card(config, model, name, inference, packed, content_key(config)))
        if model.quantizers is not None:
            shutil.copyfile(model.quantizers, place / "quantizers.json")
        if packed.count:
            packed.write(place / "samples.npz")
            for program in PROGRAMS:
                shutil.copyfile(Path(card.__file__).parent / program, place / program)
            said = _predict(place)
        archive.write_sums(place)
        archive.write_archive(place, folder / f"{name}.tar.gz")
    print(f"package: {model.title} ({model.folder}) in {FOLDER / name}, {plural(packed.count, 'sample')}")
    if packed.count:
        print(f"predict.py: {said}")
    for metric, reason in packed.left.items():
        print(f"predict.py leaves out {metric}: {reason}")
    target = FOLDER / f"{name}.tar.gz"
    print(f"archive: {target}, {target.stat().st_size / 1e6:.2f} MB, SHA-256 {artifacts.file_sha256(target)}")
    if config.package.license is None:
        print("licence: not stated; package.license in params.yaml is what the model card shows")


def _predict(place: Path) -> str:
    """What predict.py says of the samples, run as a user of the package would, outside of the project.

    Raises:
        UserError: it fails, or the outputs are not those measured.
    """
    command = [sys.executable, "-B", "-E", "predict.py"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"{NAME}: predict.py does not reproduce what was measured: {''.join(reason)}")
    return "; ".join(done.stdout.splitlines())


if __name__ == "__main__":
    sys.exit(main())
