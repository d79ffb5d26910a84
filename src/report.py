"""The report of an evaluation: the table for the terminal, and metrics.json, per_image.csv, grid.png and report.html."""

import base64
import csv
import json
import math
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

TITLES = {"mae": "MAE %", "psnr": "PSNR dB", "ssim": "SSIM", "colorfulness": "colorful"}
PAPER = "The paper's figures (Nazeri et al. 2018, 200 epochs) are quoted from memory; nothing here has measured them."
LEGEND = ("Below each mean: its 95% interval, a bootstrap over the images. MAE: less is better. Colorful: Hasler and "
          "Süsstrunk's M; the nearer to the truth's the better.")


def rows(results):
    """The table: yields (label, means, intervals), two dicts by measure; intervals may be empty."""
    intervals = results["intervals"]
    yield "network", results["metrics"], intervals["metrics"]
    yield "  true lightness", results["metrics_true_lightness"], intervals["metrics_true_lightness"]
    yield "gray copied", results["baselines"]["gray"], intervals["baselines"]["gray"]
    if results["baselines"]["mean_chroma"]:
        yield "mean a, b", results["baselines"]["mean_chroma"], intervals["baselines"]["mean_chroma"]
    yield ("truth", {"colorfulness": results["metrics"]["colorfulness_truth"]},
           {"colorfulness": intervals["metrics"]["colorfulness_truth"]})
    for name, figures in results["paper"].items():
        yield f"paper's {name}", figures, {}


def columns(results):
    """Returns two dicts of measure to title: what images are compared by, and the losses."""
    names = [name for name in results["metrics"] if name != "colorfulness_truth"]
    losses = {name: name for name in names if "loss" in name}
    return {name: TITLES.get(name) or f"{name.replace('accuracy', 'acc')} %" for name in names if name not in losses}, losses


def number(value):
    return "" if value is None else f"{value:#.4g}".rstrip(".")


def interval(bounds, dash="-"):
    """As short as the width of the interval allows: "13.6-14.5", "0.359-0.383"."""
    if not bounds:
        return ""
    low, high = bounds
    digits = max(0, math.ceil(-math.log10((high - low) / 5 or 1)))
    while len(text := f"{low:.{digits}f}{dash}{high:.{digits}f}") > 11 and digits:
        digits -= 1
    return text



def table(results):
    """The report for a terminal, at most 100 columns wide; notes may be longer, they wrap."""
    compared, losses = columns(results)

    def lines(label, titles, means, intervals, width):
        yield f"{label:16}" + "".join(f"{number(means.get(name)):>{width}}" for name in titles)
        if any(intervals.get(name) for name in titles):
            yield " " * 16 + "".join(f"{interval(intervals.get(name)):>{width}}" for name in titles)

    out = ["", describe(results), "", f"{'':16}" + "".join(f"{title:>12}" for title in compared.values())]
    for label, means, intervals in rows(results):
        out += lines(label, compared, means, intervals, 12)
    out += ["", f"{'losses':16}" + "".join(f"{title:>14}" for title in losses)]
    out += lines("", losses, results["metrics"], results["intervals"]["metrics"], 14)
    legend = [LEGEND, *([PAPER] if results["paper"] else []), *results["notes"]]
    return "\n".join([*out, "", *(line for text in legend for line in textwrap.wrap(text, 100, break_long_words=False))])


def describe(results):
    return (f"{results['dataset']}: {results['images']:,} test images; {Path(results['checkpoint']).name}, step "
            f"{results['step']:,}, {results['color_space']}, {results['normalization']} statistics")


def write(folder, results, shown, names, images_names, values, record):
    """Writes metrics.json, per_image.csv, grid.png and report.html into a folder; each beside its place, and renamed.

    Args:
        results: the contents of metrics.json.
        shown: dict of title to a list of (name, MAE in percent, original, colorized), the latter uint8 (S, S, 3).
        names: of the measures, (protocol, measure); values: (images, measures).
        record: of the checkpoint.
    """
    with files.atomic_write(folder / "metrics.json") as part:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    with files.atomic_write(folder / "per_image.csv") as part, open(part, "w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(name if protocol == "metrics" else f"{protocol.removeprefix('metrics_')}/{name}"
                                    for protocol, name in names)])
        writer.writerows([name, *(f"{value:.6g}" for value in row)] for name, row in zip(images_names, values))
    groups = {f"{title.capitalize()} by MAE": [(name, f"MAE {error:.2f}%", _strip(original, output))
                                               for name, error, original, output in group]
              for title, group in shown.items()}
    images.write(folder / "grid.png", _grid(groups))
    with files.atomic_write(folder / "report.html") as part:
        part.write_bytes(_page(folder.parent, results, groups, record).encode(errors="replace"))


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
            cells = "".join(f"<td>{number(means.get(name))}<small>{interval(intervals.get(name), '–')}</small></td>"
                            for name in titles)
            yield f"<tr><th scope=row>{escape(label)}</th>{cells}</tr>"

    def head(titles):
        return "<tr><th></th>" + "".join(f"<th scope=col>{escape(title)}</th>" for title in titles.values()) + "</tr>"

    def figures():
        for title, group in groups.items():
            yield f"<h2>{title}</h2><p class=dim>gray | original | colorized</p><div class=pictures>"
            for name, caption, strip in group:
                # Photographs as JPEG: 24 of them would be 10 MB as PNG.
                kind = "png" if len(strip) < 256 else "jpeg"
                yield (f"<figure><img alt='{escape(name)}: gray, original, colorized' src='{_embedded(strip, kind)}'>"
                       f"<figcaption><b>{caption}</b> {escape(name)}</figcaption></figure>")
            yield "</div>"

    def listed(values):
        return "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in values.items())

    evaluation = {key: results[key] for key in ("checkpoint", "acc_thresh", "label_smoothing", "l1_weight", "batch_size",
                                                "seed")}
    networks = {key: record[key] for key in ("network", "color_space", "gray_range", "kernel_size", "filters",
                                             "discriminator")}
    trained = {**networks, **record.get("options", {})}
    return Template((Path(__file__).with_name("report.html")).read_text()).substitute(
        title=escape(f"Evaluation of {Path(results['checkpoint']).name}"), summary=escape(describe(results)),
        head=head(compared), body="".join(body(rows(results), compared)), losses_head=head(losses),
        losses="".join(body([("mean", results["metrics"], results["intervals"]["metrics"])], losses)),
        legend=escape(f"{LEGEND} {PAPER if results['paper'] else ''}"),
        notes="".join(f"<li>{escape(note)}</li>" for note in results["notes"]), pictures="".join(figures()),
        curves=_curves(run_folder, trained.get("visualize_window", 100)),
        evaluation=listed(evaluation), options=listed(trained))


def _curves(run_folder, window):
    if not (run_folder / "log_train.dat").exists():
        return "<p class=dim>The checkpoint's folder holds no logs.</p>"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "curves.png"
        try:
            logs.draw(run_folder, window, path)
        except ValueError as error:  # a line cut short by a crash
            return f"<p class=dim>The logs cannot be read: {escape(str(error))}</p>"
        with Image.open(path) as picture:
            source = _embedded(np.asarray(picture.convert("RGB")), "png")
    return f"<div class=wide><img class=curves alt='learning curves' src='{source}'></div>"


def _embedded(pixels, kind):
    """uint8 (H, W, 3) -> data URI."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=92, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
