"""The Turing test's score: how often colorizations were taken for real, as numbers, words and a picture."""

import io

import numpy as np
from scipy.stats import binomtest


def summarize(rows):
    """The score of some trials.Rows, as a dict.

    `answered_rate` is the share of answers that took the colorization for real; `rate` the share of all trials in which
    the original was not found, unanswered ones included. Both in percent, with the exact (Clopper-Pearson) 95% interval
    and the two-sided binomial p-value against one half; None where there is nothing to count.
    """
    counts = {result: sum(row.result == result for row in rows) for result in ("correct", "wrong", "unanswered")}
    answered = counts["correct"] + counts["wrong"]
    summary = {"trials": len(rows), "people": len({row.person for row in rows}), "answered": answered, **counts}
    for key, hits, of in (
        ("answered_rate", counts["wrong"], answered),
        ("rate", counts["wrong"] + counts["unanswered"], len(rows)),
    ):
        test = binomtest(hits, of, 0.5) if of else None
        summary[f"{key}_percent"] = 100 * hits / of if of else None
        summary[f"{key}_interval_percent"] = [100 * x for x in test.proportion_ci(0.95, "exact")] if of else None
        summary[f"{key}_p_value"] = float(test.pvalue) if of else None
    times = [row.seconds for row in rows if row.answer]
    summary["median_seconds"] = float(np.median(times)) if times else None
    return summary


def describe(summary):
    """The score in words, for a terminal of 80 columns."""

    def share(key, of):
        if summary[f"{key}_percent"] is None:
            return f"- of {of}"
        (low, high), p_value = summary[f"{key}_interval_percent"], summary[f"{key}_p_value"]
        p_value = "< 0.0001" if p_value < 1e-4 else f"= {p_value:.4f}"
        percent = f"{summary[f'{key}_percent']:.1f}% of {of}"
        return f"{percent}\n{'':18}95% interval {low:.1f} to {high:.1f}%; chance 50%, p {p_value}"

    answered, trials, people = summary["answered"], summary["trials"], summary["people"]
    seconds = "-" if summary["median_seconds"] is None else f"{summary['median_seconds']:.2f} s"
    return (
        f"taken for real    {share('answered_rate', f'{answered} answered trials')}\n"
        f"or unanswered     {share('rate', f'all {trials} trials')}\n"
        f"trials            {summary['correct']} correct, {summary['wrong']} wrong, {summary['unanswered']} unanswered, "
        f"by {people} {'person' if people == 1 else 'people'}\n"
        f"decision time     {seconds} (median)\n"
        "Unanswered: nothing was chosen within --test-delay seconds."
    )


def tell(summary):
    """A person's score, as it is told to them at the end."""
    if not summary["answered"]:
        return f"You answered none of the {summary['trials']} pairs before the time was over."
    low, high = summary["answered_rate_interval_percent"]
    late = summary["unanswered"]
    return (
        f"In {summary['wrong']} of the {summary['answered']} pairs that you answered "
        f"({summary['answered_rate_percent']:.0f}%) you took the colorization for real; the 95% interval is {low:.0f}% to "
        f"{high:.0f}%. Guessing would give 50%." + (f" {late} more you left unanswered: the time was over." if late else "")
    )


def picture(summaries):
    """A PNG: for each (name, summary), of 31 at most, the share of the answered trials, its interval and chance."""
    from matplotlib.figure import Figure

    shown = summaries[:31]
    figure = Figure(figsize=(7, 1.4 + 0.4 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for y, (_, summary) in enumerate(shown):
        if summary["answered"]:
            low, high = summary["answered_rate_interval_percent"]
            axes.plot([low, high], [y, y], color="tab:blue", linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot(summary["answered_rate_percent"], y, "o", color="tab:blue")
    axes.axvline(50, color="gray", linestyle="--")
    axes.text(50, -0.6, "chance", color="gray", ha="center", va="bottom")
    names = [f"{name[:24]} ({summary['answered']})".replace("$", r"\$") for name, summary in shown]
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), yticks=range(len(shown)), yticklabels=names)
    axes.set_xlabel("% of the answered trials, with 95% interval")
    figure.suptitle("Visual Turing test: colorizations taken for real")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
