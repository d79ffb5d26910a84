"""The Turing test's score: how often colorizations were taken for real, as numbers, words and a picture."""

import io

import numpy as np
from scipy.stats import binomtest


def summarize(rows: list) -> dict:
    """The score of some turing_trials.Rows.

    `rate` is the share of trials in which the original was not found, unanswered ones included; `answered_rate` the
    share of answers that took the colorization for it. Both in percent, with the exact (Clopper-Pearson) 95% interval
    and the two-sided binomial p-value against one half; None where there is nothing to count.
    """
    counts = {result: sum(row.result == result for row in rows) for result in ("correct", "wrong", "unanswered")}
    summary = {"trials": len(rows), "people": len({row.person for row in rows}), **counts}
    for key, hits, of in (
        ("rate", counts["wrong"] + counts["unanswered"], len(rows)),
        ("answered_rate", counts["wrong"], counts["wrong"] + counts["correct"]),
    ):
        test = binomtest(hits, of, 0.5) if of else None
        summary[f"{key}_percent"] = 100 * hits / of if of else None
        summary[f"{key}_interval_percent"] = [100 * x for x in test.proportion_ci(0.95, "exact")] if of else None
        summary[f"{key}_p_value"] = float(test.pvalue) if of else None
    times = [row.seconds for row in rows if row.answer]
    summary["median_seconds"] = float(np.median(times)) if times else None
    return summary


def describe(summary: dict) -> str:
    """The score in words."""

    def share(key):
        if summary[f"{key}_percent"] is None:
            return "-"
        low, high = summary[f"{key}_interval_percent"]
        p_value = summary[f"{key}_p_value"]
        percent = f"{summary[f'{key}_percent']:.1f}% (95% interval {low:.1f} to {high:.1f}; chance 50"
        return f"{percent}, p {'< 0.0001' if p_value < 1e-4 else f'= {p_value:.4f}'})"

    seconds = "-" if summary["median_seconds"] is None else f"{summary['median_seconds']:.2f} s"
    return (
        f"trials                         {summary['trials']} by {summary['people']} "
        f"{'person' if summary['people'] == 1 else 'people'}: {summary['correct']} correct, "
        f"{summary['wrong']} wrong, {summary['unanswered']} unanswered\n"
        f"colorization taken for real    {share('rate')}\n"
        f"  of the answered trials       {share('answered_rate')}\n"
        f"median decision time           {seconds}"
    )


def picture(summaries: list[tuple[str, dict]]) -> bytes:
    """A PNG: for each name (of 31 at most) the rate, its interval and chance."""
    from matplotlib.figure import Figure

    shown = summaries[:31]
    figure = Figure(figsize=(7, 1.4 + 0.4 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for y, (_, summary) in enumerate(shown):
        low, high = summary["rate_interval_percent"]
        axes.plot([low, high], [y, y], color="tab:blue", linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(summary["rate_percent"], y, "o", color="tab:blue")
    axes.axvline(50, color="gray", linestyle="--")
    axes.text(50, -0.6, "chance", color="gray", ha="center", va="bottom")
    names = [f"{name[:24]} ({summary['trials']})".replace("$", r"\$") for name, summary in shown]
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), yticks=range(len(shown)), yticklabels=names)
    axes.set_xlabel("% of the trials, with 95% interval")
    figure.suptitle("Visual Turing test: colorizations taken for real")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
