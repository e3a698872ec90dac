"""The frame of `page`: its HTML and CSS, as a Jinja template."""

HTML = """\
{% macro table(given) %}
<table>
{% if given.columns %}
<thead>
{% if given.groups %}
<tr><td></td>
{% for text, count in given.groups %}
{% if text %}<th class="group" colspan="{{ count }}"><span>{{ text }}</span></th>
{% else %}<td colspan="{{ count }}"></td>{% endif %}
{% endfor %}
</tr>
{% endif %}
<tr>{% for column in given.columns %}<th>{{ column }}</th>{% endfor %}</tr>
</thead>
{% endif %}
<tbody>
{% for row in given.rows %}
<tr{% if row.kind %} class="{{ row.kind }}"{% endif %}>
<th>{% if row.kind == "failed" %}<s>{{ row.name }}</s>{% else %}{{ row.name }}{% endif %}</th>
{% if row.kind == "precision" %}<td colspan="{{ given.columns | length - 1 }}"></td>
{% elif row.text %}<td class="text" colspan="{{ given.columns | length - 1 }}">{{ row.text }}</td>
{% else %}{% for cell in row.cells %}
<td{% if cell == failed %} class="alarm"{% endif %}>{{ cell }}</td>{% endfor %}{% endif %}
</tr>
{% endfor %}
</tbody>
</table>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color: #1f2328; background: #fff; font: 14px/1.45 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
body { max-width: 960px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; padding-bottom: 4px; border-bottom: 1px solid #d0d7de; break-after: avoid; }
h3 { font-size: 14px; margin: 20px 0 4px; break-after: avoid; }
p { margin: 4px 0 8px; }
.small, .absent, figcaption, .notes { color: #57606a; font-size: 13px; }
.banner { border-left: 5px solid #b42318; background: #fdeceb; color: #7a1a12; padding: 8px 12px;
  margin: 10px 0; font-weight: 600; }
.unfinished { border-color: #b57700; background: #fff5dc; color: #6b4700; }
.answer { border: 2px solid #0b5fa5; border-radius: 6px; padding: 12px 16px; margin: 18px 0; break-inside: avoid; }
.answer.none { border-color: #b42318; }
.answer h2 { border: 0; margin: 0 0 4px; padding: 0; font-size: 18px; }
.answer dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; }
.answer dt { color: #57606a; }
.answer dd { margin: 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; margin: 6px 0; }
th, td { padding: 4px 6px; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid #8c959f; white-space: pre-line; }
thead td { border: 0; }
thead .group { text-align: center; border: 0; padding-bottom: 0; }
thead .group span { display: block; border-bottom: 1px solid #8c959f; }
tbody th, th:first-child, .plain th, .plain td { text-align: left; }
tbody th { font-weight: 400; }
tr.ours th { font-weight: 700; }
tr.precision th { font-style: italic; padding-top: 10px; }
td.text { text-align: left; white-space: normal; }
tr.failed th, tr.failed td { color: #7a1a12; }
tr.unavailable th, tr.unavailable td { color: #6e7781; }
td.alarm { color: #b42318; font-weight: 700; }
tr { break-inside: avoid; }
.plain td { vertical-align: top; white-space: normal; overflow-wrap: anywhere; }
.plain th { vertical-align: top; }
figure { margin: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif !important; }
details { margin: 8px 0; }
summary { cursor: pointer; color: #0b5fa5; }
ul.notes { margin: 6px 0; padding-left: 18px; }
@media print {
  :root { font-size: 11px; }
  body { max-width: none; padding: 0; }
  table { font-size: 10px; }
  th, td { padding: 2px 5px; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ subject }}</p>
<p class="small">{{ timed }}</p>
<p class="small">{{ note }}.</p>
{% if not complete %}<p class="banner unfinished">
INCOMPLETE: the run was interrupted; what is here was measured before</p>{% endif %}
{% for failure in failures %}<p class="banner">{{ failure }}</p>{% endfor %}
{% if answer %}
<section class="answer{% if not answer.holds %} none{% endif %}">
<h2>{{ answer.title }}</h2>
<p>{{ answer.reason }}</p>
<dl>{% for name, value in answer.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</section>
{% else %}
<p class="absent">Recommendation left out: no period was given
{%- if not complete %}, or the run ended before{% endif %}.</p>
{% endif %}
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for part in section.parts %}
{% if part.absent %}
<p class="absent">{% if part.title %}{{ part.title }} left out{% else %}Left out{% endif %}: {{ part.absent }}.</p>
{% elif part.folded %}
<details><summary>{{ part.title }}</summary>
<div class="wide">{{ table(part.table) }}</div>
</details>
{% else %}
{% if part.title %}<h3>{{ part.title }}</h3>{% endif %}
{% if part.svg %}<figure>{{ part.svg | safe }}
{%- if part.caption %}<figcaption>{{ part.caption }}</figcaption>{% endif %}</figure>{% endif %}
{% if part.table %}
<div class="wide{% if part.table.plain %} plain{% endif %}">{{ table(part.table) }}</div>
{% if part.caption %}<p class="small">{{ part.caption }}</p>{% endif %}
{% endif %}
{% endif %}
{% endfor %}
{% if section.notes %}<ul class="notes">{% for note in section.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
</section>
{% endfor %}
</body>
</html>
"""
