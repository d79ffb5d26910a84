"""The report of an evaluation: the table for the terminal, and metrics.json, per_image.csv, grid.png and report.html."""

import base64
import csv
import json
import math
import re
import tempfile
import textwrap
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src import files, logs
from src.color import LUMA
from src.data import images

TITLES = {"mae": "MAE %", "psnr": "PSNR dB", "ssim": "SSIM", "colorfulness": "colorful", "fid": "FID"}
LEGEND = (
    "Below each mean: its 95% interval, a bootstrap over the images. MAE: less is better. Accuracy, PSNR, SSIM: more. "
    "Colorful (Hasler and Süsstrunk's M): the nearer to the truth's the better. With true L: the same a and b, with the "
    "original's lightness."
)
WIDTH, LABEL, CELL = 80, 12, 11  # columns of the terminal's table


def rows(results):
    """The table: yields (label, means, intervals), two dicts by measure; intervals may be empty."""
    for label, of in (
        ("network" if results["checkpoint"] else "results", lambda values: values["metrics"]),
        ("with true L", lambda values: values["metrics_true_lightness"]),
        ("gray copied", lambda values: values["baselines"]["gray"]),
        ("mean a, b", lambda values: values["baselines"]["mean_chroma"]),
        ("truth", lambda values: {"colorfulness": values["metrics"]["colorfulness_truth"]}),
    ):
        if of(results):
            yield label, of(results), of(results["intervals"])


def columns(results):
    """Returns two dicts of measure to title: what images are compared by, and the losses, if there are any."""
    names = [name for name in results["metrics"] if name != "colorfulness_truth"]
    losses = {name: name for name in names if "loss" in name and results["metrics"][name] is not None}
    compared = {name: TITLES.get(name) or f"{name.replace('accuracy', 'acc')} %" for name in names if "loss" not in name}
    return compared, losses


def number(value):
    return "" if value is None else f"{value:#.4g}".rstrip(".")


def interval(bounds, dash="-"):
    """As short as the width of the interval allows: "13.6-14.5", ".359-.383"."""
    if not bounds:
        return ""
    low, high = bounds
    for digits in range(max(0, math.ceil(-math.log10((high - low) / 5 or 1))), -1, -1):
        text = re.sub(r"\b0\.", ".", f"{low:.{digits}f}{dash}{high:.{digits}f}")
        if len(text) < CELL:
            break
    return text


def table(results):
    """The report for a terminal of 80 columns."""
    compared, losses = columns(results)
    out, titles, fit = ["", *_wrapped(describe(results))], list(compared), (WIDTH - LABEL) // CELL
    for block in (titles[i : i + fit] for i in range(0, len(titles), fit)):
        out += ["", " " * LABEL + "".join(f"{compared[name]:>{CELL}}" for name in block)]
        for label, means, intervals in rows(results):
            if any(name in means for name in block):
                out.append(f"{label:{LABEL}}" + "".join(f"{number(means.get(name)):>{CELL}}" for name in block))
                out.append(" " * LABEL + "".join(f"{interval(intervals.get(name)):>{CELL}}" for name in block))
    out.append("")
    for name in losses:
        bounds = interval(results["intervals"]["metrics"][name])
        out.append(f"{name:{LABEL + 2}}{number(results['metrics'][name]):>{CELL - 2}}{bounds:>{CELL + 2}}")
    out += ["", *(line for text in [LEGEND, *results["notes"]] for line in _wrapped(text))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in out))  # rows without intervals


def _wrapped(text):
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def describe(results):
    count = f"{results['dataset']}: {results['images']:,} test image{'s' * (results['images'] != 1)} with color"
    if results["results"]:
        return f"{count}; pictures of {results['results']['folder']}"
    contrast = f", color contrast {results['color_contrast']:g}" * (results["color_contrast"] != 1)
    return (
        f"{count}; {Path(results['checkpoint']).name}, step {results['step']:,}, {results['color_space']}, "
        f"{results['normalization']} statistics{contrast}"
    )


def printable(value):
    """A value as JSON holds it, with every text in it such that it can be written as UTF-8: names of files may be any bytes."""
    return json.loads(json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace"))


def write(folder, results, shown, values, names, record, run_folder):
    """Writes metrics.json, per_image.csv, grid.png and report.html into a folder; each beside its place, and renamed.

    Args:
        results: the contents of metrics.json.
        shown: dict of title to a list of (name, MAE in percent, original, colorized), the latter uint8 (S, S, 3).
        values: dict of (protocol, measure) to (images,), NaN where not measured; names: of the images.
        record: of the checkpoint; empty if there is none; run_folder: its folder, with the logs.
    """
    with files.atomic_write(folder / "metrics.json") as part:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    with files.atomic_write(folder / "per_image.csv") as part, open(part, "w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        titles = [name if protocol == "metrics" else f"{protocol.removeprefix('metrics_')}/{name}" for protocol, name in values]
        writer.writerow(["image", *titles])
        writer.writerows(
            [name, *("" if math.isnan(value) else f"{value:.6g}" for value in row)]
            for name, row in zip(names, zip(*values.values()))
        )
    groups = {
        f"{title.capitalize()} by MAE": [
            (name, f"MAE {error:.2f}%", _strip(original, output)) for name, error, original, output in group
        ]
        for title, group in shown.items()
    }
    images.write(folder / "grid.png", _grid(groups))
    with files.atomic_write(folder / "report.html") as part:
        part.write_bytes(_page(run_folder, results, groups, record).encode(errors="replace"))


def _strip(original, output):
    """Two uint8 (S, S, 3) -> gray | original | colorized, uint8 (s, 3 s, 3) at 128 pixels or more: the eye needs some."""
    gray = np.rint(original @ np.array(LUMA)).astype(np.uint8)
    enlarge = max(1, 128 // len(original))
    strip = np.concatenate([np.stack([gray] * 3, -1), original, output], 1)
    return strip.repeat(enlarge, 0).repeat(enlarge, 1)


def _grid(groups):
    """Dict of title to a list of (name, caption, strip) -> the groups beside each other under their titles."""
    font, head, foot, gap = ImageFont.load_default(14), 52, 24, 24
    height, width, _ = next(iter(groups.values()))[0][2].shape
    rows = max(map(len, groups.values()))
    picture = Image.new("RGB", (len(groups) * (width + gap) + gap, head + rows * (height + foot) + gap // 2), "white")
    draw = ImageDraw.Draw(picture)
    for column, (title, group) in enumerate(groups.items()):
        left = gap + column * (width + gap)
        draw.text((left, 6), title, "black", ImageFont.load_default(18))
        for i, text in enumerate(("gray", "original", "colorized")):
            draw.text((left + i * width // 3, 31), text, "dimgray", font)
        for row, (name, caption, strip) in enumerate(group):
            top = head + row * (height + foot)
            picture.paste(Image.fromarray(strip), (left, top))
            text = f"{caption}   {name.encode('ascii', 'replace').decode()}"
            while draw.textlength(text, font) > width:
                text = text[:-4] + "..."
            draw.text((left, top + height + 3), text, "black", font)
    return np.asarray(picture)


def _page(run_folder, results, groups, record):
    """report.html as a text: all it shows is inside it."""
    compared, losses = columns(results)

    def body(rows, titles):
        for label, means, intervals in rows:
            cells = "".join(
                f"<td>{number(means.get(name))}<small>{interval(intervals.get(name), '–')}</small></td>" for name in titles
            )
            yield f"<tr><th scope=row>{escape(label)}</th>{cells}</tr>"

    def head(titles):
        return "<tr><th></th>" + "".join(f"<th scope=col>{escape(title)}</th>" for title in titles.values()) + "</tr>"

    def listed(values):
        return "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items())

    evaluation = {
        key: results[key]
        for key in ("checkpoint", "results", "image_size", "acc_thresh", "label_smoothing", "l1_weight", "batch_size", "seed")
        if results[key] is not None
    }
    if results["results"]:
        evaluation["results"] = results["results"]["folder"]
    networks = ("network", "color_space", "gray_range", "kernel_size", "filters", "discriminator")
    trained = {key: record[key] for key in networks if key in record} | record.get("options", {})
    more = []  # what only a checkpoint has
    if losses:
        body_of_losses = "".join(body([("mean", results["metrics"], results["intervals"]["metrics"])], losses))
        more.append(
            f"<h2>Losses</h2><div class=wide><table id=losses><thead>{head(losses)}</thead><tbody>{body_of_losses}"
            "</tbody></table></div>"
        )
    if record:
        more.append(f"<h2>Learning curves</h2>{_curves(run_folder, trained.get('visualize_window', 100))}")
        more.append(f"<details><summary>The checkpoint's options</summary><dl>{listed(trained)}</dl></details>")
    return Template((Path(__file__).with_name("report.html")).read_text()).substitute(
        title=escape(f"Evaluation of {Path(results['checkpoint'] or evaluation['results']).name}"),
        summary=escape(describe(results)),
        head=head(compared),
        body="".join(body(rows(results), compared)),
        legend=escape(LEGEND),
        notes="".join(f"<li>{escape(note)}</li>" for note in results["notes"]),
        pictures="".join(_figures(groups)),
        evaluation=listed(evaluation),
        more="".join(more),
    )


def _figures(groups):
    for title, group in groups.items():
        yield f"<h2>{title}</h2><p class=dim>gray | original | colorized</p><div class=pictures>"
        for name, caption, strip in group:
            # Photographs as JPEG: 24 of them would be 10 MB as PNG.
            kind = "png" if len(strip) < 256 else "jpeg"
            yield (
                f"<figure><img alt='{escape(name)}: gray, original, colorized' src='{_embedded(strip, kind)}'>"
                f"<figcaption><b>{caption}</b> {escape(name)}</figcaption></figure>"
            )
        yield "</div>"


def _curves(run_folder, window):
    if not (run_folder / "log_train.dat").exists():
        return "<p class=dim>The checkpoint's folder holds no logs.</p>"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "curves.png"
        logs.draw(run_folder, window, path)
        source = base64.b64encode(path.read_bytes()).decode()
    return f"<div class=wide><img class=curves alt='learning curves' src='data:image/png;base64,{source}'></div>"


def _embedded(pixels, kind):
    """uint8 (H, W, 3) -> data URI."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=92, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
