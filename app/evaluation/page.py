"""The pages of evaluations, as Jinja templates."""

from jinja2 import Environment, StrictUndefined

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
body { font: 16px/1.5 Georgia, serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; margin: 1rem 0; font: 14px/1.4 system-ui, sans-serif; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
td.n { text-align: right; }
figure { display: inline-block; width: min(30rem, 100%); margin: .5rem 0; }
figure.wide { width: min(44rem, 100%); }
figure img { width: 100%; }
figcaption, .note { font: 13px/1.4 system-ui, sans-serif; color: #555; }
.notice { border-left: 4px solid #c0562b; padding-left: .8rem; }
</style>
</head>
"""

_LISTED = """{% macro listed(refused) %}
{% for each in refused %}{{ each.study }} ({{ each.reason }}){{ "" if loop.last else ", " }}{% endfor %}
{% endmacro %}
"""
"""Macro that names refused studies, each with its reason code."""

CLASSIFICATION = (
    _LISTED
    + _HEAD
    + """<body>
{% macro rates(row) %}
<td>{{ row.accuracy.text }}</td><td>{{ row.sensitivity.text }}</td><td>{{ row.specificity.text }}</td>
{% endmacro %}
{% macro counts(title, column, rows, note) %}
<h3>{{ title }}</h3>
<table>
<tr><th>{{ column }}</th><th>positive</th><th>negative</th><th>accuracy</th><th>sensitivity</th><th>specificity</th>
<th>AUC</th></tr>
{% for row in rows %}
<tr><td>{{ row.name }}</td><td class="n">{{ row.positives }}</td><td class="n">{{ row.negatives }}</td>{{ rates(row) }}
<td>{{ row.auc.text }}</td></tr>
{% endfor %}
</table>
<p class="note">{{ note }}</p>
{% endmacro %}
<h1>Evaluation of classification</h1>
<p class="notice">{{ notice }} {{ software }}.</p>
{% if refused %}
<p class="notice">The system refused {{ refused | length }} of the
{{ (refused | length) + (results[0].cohort | length) }} test studies, {{ refused | sum(attribute="label") }} of them
positive. They have no probability, and all figures leave them out:
{{ listed(refused) }}.</p>
{% endif %}
<h2>Models</h2>
<table>
<tr><th>model</th><th>studies</th><th>patients</th><th>positive</th><th>AUC</th>
<th>false positives at 95 % sensitivity</th><th>ECE</th></tr>
{% for result in results %}
<tr><td>{{ result.model }}</td><td class="n">{{ result.cohort | length }}</td>
<td class="n">{{ result.cohort.patients.tolist() | unique(case_sensitive=true) | list | length }}</td>
<td class="n">{{ result.cohort.labels.sum() }}</td><td>{{ result.auc.text }}</td><td>{{ result.fpr_at_95.text }}</td>
<td class="n">{{ "%.3f" | format(result.calibration.before.expected_error) }}</td></tr>
{% endfor %}
</table>
{% if differences %}
<h2>Differences</h2>
<table>
<tr><th>from</th><th>to</th><th>AUC</th><th>false positives at 95 %</th><th>DeLong's p</th></tr>
{% for each in differences %}
<tr><td>{{ each.first }}</td><td>{{ each.second }}</td><td>{{ each.auc.text }}</td><td>{{ each.fpr_at_95.text }}</td>
<td class="n">{{ "undefined" if each.delong_p_value is none else "%.3f" | format(each.delong_p_value) }}</td></tr>
{% endfor %}
</table>
<p class="note">DeLong's p is undefined where a patient has several studies, or a class has only one.</p>
{% endif %}
{% set captions = {
  "roc": "ROC curves; of a single model also the binormal curve of its logits with its 95 % band (Demidenko).",
  "reliability": "Share of positives by predicted probability; the area of a dot is its share of the studies.",
  "probabilities": "Probabilities by class, and the thresholds.",
  "involvement": "Involvement of the lungs by class.",
} %}
{% for name in pictures %}
<figure><img src="{{ name }}.svg" alt="{{ captions[name] }}"><figcaption>{{ captions[name] }}</figcaption></figure>
{% endfor %}
{% for result in results %}
<h2>{{ result.model }}</h2>
<p>Of {{ result.cohort | length }} studies of
{{ result.cohort.patients.tolist() | unique(case_sensitive=true) | list | length }} patients,
{{ result.cohort.labels.sum() }} were positive. The area under the ROC curve was <strong>{{ result.auc.text }}</strong>;
at a sensitivity of 95 %, the rate of false positives was <strong>{{ result.fpr_at_95.text }}</strong>.</p>
<table>
<tr><th>threshold</th><th></th><th>chosen on</th><th>accuracy</th><th>sensitivity</th><th>specificity</th></tr>
{% for point in result.points %}
<tr><td>{{ point.name }}</td><td class="n">{{ "%.3f" | format(point.threshold) }}</td><td>{{ point.chosen_on }}</td>
{{ rates(point) }}</tr>
{% endfor %}
</table>
{% if result.points[-1].chosen_on == "the same cases" %}
<p class="notice">There were no validation cases to choose thresholds on: the figures of the last two rows are too
good.</p>
{% endif %}
<p>The expected calibration error was {{ "%.3f" | format(result.calibration.before.expected_error) }}
{%- if result.calibration.after is not none %}, and
{{ "%.3f" | format(result.calibration.after.expected_error) }} after temperature scaling on the validation cases
(temperature {{ "%.2f" | format(result.calibration.temperature) }}){% endif %}.</p>
{% if result.co_rads %}
{{ counts("By CO-RADS", "class", result.co_rads,
          "At the threshold 0.5. Wilson intervals; undefined where there are no cases.") }}
{% endif %}
{% for name, rows in result.subgroups.items() %}
{{ counts("By " + name.replace("_", " "), name.replace("_", " "), rows,
          "At the threshold 0.5. Small groups say little: look at the intervals.") }}
{% endfor %}
{% endfor %}
<p class="note">Intervals: 95 %, percentiles of {{ replicates }} bootstrap replicates, patients drawn within their
class, all studies of a patient together; of the rates in the tables by class and group, Wilson's. The figures are in
classification.json and classification.csv.</p>
</body>
</html>
"""
)

SEGMENTATION = (
    _LISTED
    + _HEAD
    + """<body>
<h1>Evaluation of segmentation</h1>
<p class="notice">{{ notice }} {{ software }}.</p>
<p>On {{ content.studies }} studies of {{ content.patients }} patients{{ ", in the lungs of the cohort" if
content.in_given_lungs }}.</p>
{% if content.refused %}
<p class="notice">The system refused {{ content.refused_studies }} of the {{ content.studies }} studies, which count as
studies in which it found nothing:
{{ listed(content.refused) }}.</p>
{% endif %}
<table>
<tr><th>measure</th><th>mean</th></tr>
{% for name, estimate in rows %}
<tr><td>{{ name }}</td><td>{{ estimate.text }}</td></tr>
{% endfor %}
</table>
<figure class="wide"><img src="dice.svg" alt="Dice of every study">
<figcaption>Every study; the box holds the middle half.</figcaption></figure>
<h2>Where to look first</h2>
<p>The studies whose lesions agree least.</p>
<table>
<tr><th>study</th><th>lungs, Dice</th><th>lesions, Dice</th><th>affected lung by 2DS, Dice</th>
<th>involvement too high by</th></tr>
{% for score, _ in worst %}
<tr><td>{{ score.study }}{{ ": " ~ score.refused if score.refused else "" }}</td>
{% for name, form in (("lungs_dice", "%.3f"), ("lesions_dice", "%.3f"), ("affected_dice", "%.3f"),
("involvement_error", "%+.2f")) %}
{% set value = score.measures[name] %}
<td class="n">{{ form | format(value) if value == value else "" }}</td>
{% endfor %}
</tr>
{% endfor %}
</table>
{% for score, picture in worst if picture %}
<figure class="wide"><img src="{{ picture }}" alt="Where the masks of {{ score.study }} differ most">
<figcaption>{{ score.study }}: the slices in which the masks differ most.</figcaption></figure>
{% endfor %}
<p class="note">Means over the studies in which a measure is defined: the Dice of lesions that neither mask holds is
not. Intervals: 95 %, percentiles of {{ content.replicates }} bootstrap replicates over patients. The figures of every
study are in segmentation.csv, the means in segmentation.json.</p>
</body>
</html>
"""
)


def render(template: str, **values: object) -> str:
    """Fill a template; text from tables is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(values) + "\n"
