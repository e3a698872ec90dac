"""The frame of the page of a shift: its HTML and CSS, as a Jinja template."""

HTML = """\
{% macro plot(given, unit) %}
<div class="plot">
<div class="scale"><span>{{ given.top }}</span><span>{{ unit }}</span></div>
<div class="area">{{ caller() }}</div>
<div class="ticks">{% for tick in given.ticks %}<span>{{ tick }}</span>{% endfor %}</div>
</div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shift: {{ span }}</title>
<style>
:root { color: #1f2328; background: #fff; font: 14px/1.45 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
body { max-width: 960px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 32px 0 8px; padding-bottom: 4px; border-bottom: 1px solid #d0d7de; }
p { margin: 4px 0 8px; overflow-wrap: anywhere; }
.small { color: #57606a; font-size: 13px; }
.banner { border-left: 5px solid #b42318; background: #fdeceb; color: #7a1a12; padding: 8px 12px; font-weight: 600; }
.counts { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0; padding: 0; list-style: none; }
.counts li { flex: 1 1 90px; border: 1px solid #d0d7de; border-top: 4px solid #1a7f37; border-radius: 4px;
  padding: 6px 10px; }
.counts .REJECT { border-top-color: #b42318; }
.counts .ERROR { border-top-color: #b57700; }
.counts b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.plot { display: grid; grid-template-columns: 3em 1fr; gap: 2px 8px; font-size: 12px; color: #57606a; }
.scale { display: flex; flex-direction: column; justify-content: space-between; text-align: right; }
.area { height: 180px; border: solid #8c959f; border-width: 0 0 1px 1px; }
.area svg { display: block; width: 100%; height: 100%; overflow: visible; }
.area line, .area polyline { fill: none; vector-effect: non-scaling-stroke; }
.ticks { grid-column: 2; display: flex; justify-content: space-between; }
.key { font-size: 12px; color: #57606a; }
.key i { display: inline-block; width: 14px; height: 10px; margin: 0 4px 0 10px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: 6px 0; width: 100%; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
thead th { border-bottom: 1px solid #8c959f; }
th:first-child, td:first-child, .text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0 16px; }
dt { color: #57606a; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: #0b5fa5; }
@media (max-width: 640px) { table { font-size: 12px; } th, td { padding: 4px 2px; } th { white-space: normal; }
  td.text { min-width: 0; } td.text:nth-child(2) { min-width: 7em; } }
@media print { body { max-width: none; padding: 0; } .wide { overflow: visible; } }
</style>
</head>
<body>
<h1>Shift</h1>
<p>{{ parts }} parts, {{ span }}</p>
<p class="small">{{ name }}: records {{ chain.first }} to {{ chain.last }}, the last with the hash {{ chain.head }}.
{% if not chain.problem %}The chain holds{% if chain.cuts %}; {{ chain.cuts }} cut by a crash, as recorded{% endif %}.
{% endif %}</p>
{% if chain.problem %}
<p class="banner">The log is not as it was written: {{ chain.problem }}. This page has what stands before.</p>
{% endif %}
{% if chain.lost %}<p class="banner">{{ chain.lost }} answers could not be written to the log.</p>{% endif %}
<ul class="counts">
{% for verdict, count, share in counts %}
<li class="{{ verdict }}">{{ verdict }}<b>{{ count }}</b>{{ share }}</li>
{% endfor %}
</ul>

<h2>Promised and seen</h2>
{% for each in models %}
<dl>
<dt>model</dt><dd>{{ each.model }}, threshold {{ each.threshold }}</dd>
<dt>promised</dt><dd>{{ each.promised }}</dd>
<dt>seen</dt><dd>{{ each.seen }}</dd>
<dt>that is</dt><dd>{{ each.meaning }}</dd>
</dl>
{% endfor %}

<h2>Rejects over time</h2>
{% call plot(rejects, "0 %") %}
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="Share of rejects and errors over time">
{% for bar in rejects.bars %}
<g><title>{{ bar.title }}</title>
<rect x="{{ bar.x }}" y="0" width="{{ rejects.width }}" height="100" fill="transparent"/>
<rect x="{{ bar.x + 0.1 * rejects.width }}" y="{{ 100 - bar.rejects }}" width="{{ 0.8 * rejects.width }}" \
height="{{ bar.rejects }}" fill="#b42318"/>
<rect x="{{ bar.x + 0.1 * rejects.width }}" y="{{ 100 - bar.rejects - bar.errors }}" \
width="{{ 0.8 * rejects.width }}" height="{{ bar.errors }}" fill="#b57700"/></g>
{% endfor %}
</svg>
{% endcall %}
<p class="key"><i style="background:#b42318"></i>rejected<i style="background:#b57700"></i>errors; share of the parts \
in {{ rejects.each }}</p>

<h2>Drift</h2>
{% if drift %}
<p>{{ drift.sentence }}</p>
{% call plot(drift, "0") %}
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="Scores of parts that passed over time">
{% for points in drift.bands %}<polygon points="{{ points }}" fill="#cfe2f3"/>{% endfor %}

{% for points in drift.lines %}<polyline points="{{ points }}" stroke="#0b5fa5" stroke-width="2"/>{% endfor %}

{% for x, y in drift.dots %}
<line x1="{{ x - 0.5 }}" x2="{{ x + 0.5 }}" y1="{{ y }}" y2="{{ y }}" stroke="#0b5fa5" stroke-width="4"/>
{% endfor %}
<line x1="0" x2="100" y1="{{ drift.limit }}" y2="{{ drift.limit }}" stroke="#b42318" stroke-width="1.5"/>
{% for y in drift.calibration %}
<line x1="0" x2="100" y1="{{ y }}" y2="{{ y }}" stroke="#57606a" stroke-width="1.5" stroke-dasharray="5 4"/>
{% endfor %}
</svg>
{% endcall %}
<p class="key"><i style="background:#0b5fa5"></i>median<i style="background:#cfe2f3"></i>middle 90 %\
<i style="background:#b42318"></i>limit<i style="background:#57606a"></i>median of the calibration; score ÷ threshold \
of parts that passed</p>
{% else %}
<p>No part passed.</p>
{% endif %}

<h2>Hours</h2>
<div class="wide"><table>
<thead><tr><th>hour</th><th>parts</th><th>PASS</th><th>REJECT</th><th>ERROR</th><th>rejected</th>\
<th>median score ÷ limit</th></tr></thead>
<tbody>
{% for row in hours %}
<tr><td>{{ row.hour }}</td><td>{{ row.parts }}</td>{% for count in row.counts %}<td>{{ count }}</td>{% endfor %}
<td>{{ row.share }}</td><td>{{ row.median }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>Last rejects and errors</h2>
{% if last %}
<details{% if last | length <= 20 %} open{% endif %}><summary>The last {{ last | length }}</summary>
<div class="wide"><table>
<thead><tr><th>time</th><th class="text">id</th><th class="text">verdict</th><th>score ÷ limit</th>\
<th class="text">reason</th></tr></thead>
<tbody>
{% for row in last %}
<tr><td>{{ row.time }}</td><td class="text">{{ row.id }}</td><td class="text">{{ row.verdict }}</td>\
<td>{{ row.ratio }}</td><td class="text">{{ row.reason }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% else %}
<p>None.</p>
{% endif %}
</body>
</html>
"""
