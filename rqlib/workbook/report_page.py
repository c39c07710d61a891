"""The page of a report: its template, its style, and the script that draws its figures as wide as the window allows."""

import base64
import gzip

from plotly import offline
from pygments.formatters import HtmlFormatter

CONTENTS = "<!-- contents -->"
"""What stands in the page until the headings are known."""

STYLE = """
body { font: 16px/1.5 Helvetica, Arial, "DejaVu Sans", sans-serif; color: #222; max-width: 1200px; margin: auto;
  padding: 0 16px 60px; }
h1 { font-size: 1.7em; line-height: 1.25; }
h2 { margin-top: 2em; border-bottom: 1px solid #DDD; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; margin: 6px 0; }
details > summary { color: #555; cursor: pointer; font-size: 13px; }
.highlight { background: #F6F6F6; padding: 4px 10px; border-radius: 4px; }
.output_stderr { background: #FDF3E1; padding: 2px 10px; border-radius: 4px; }
.output_html, .contents, .text_cell_render p { overflow-x: auto; overflow-y: hidden; }
table { border: 0; border-collapse: collapse; font-size: 14px; margin: 8px 0; width: max-content; }
th, td { max-width: 28em; padding: 3px 10px; border: 0; text-align: right; vertical-align: top; }
td:first-child, th:first-child { text-align: left; }
thead { border-bottom: 1px solid #888; }
tbody tr:nth-child(even) { background: #F6F6F6; }
.rqlib-answer { overflow-x: auto; }
.rqlib-answer table { width: auto; }
.rqlib-answer table td { text-align: left; overflow-wrap: break-word; }
@media (max-width: 599px) {
  .output_area td:first-child, .output_area th:first-child { max-width: 10em; overflow-wrap: anywhere; } }
.contents ol { columns: 22em; margin: 8px 0; }
.anchor-link { display: none; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math; }
@media print { .figure { break-inside: avoid; } details.code { display: none; } body { padding: 0; } }
"""

DRAW = """
const PRINTED = 680;  // pixels: the width of a figure on paper
const narrow = () => innerWidth < 600;
const shown = text => text.replace(/<[^>]*>/g, "").length;
function wrapped(text, most) {  // in lines of at most so many characters, if its words allow
  const lines = [];
  for (const part of String(text).split("<br>")) {
    lines.push("");
    for (const word of part.split(" ")) {
      const line = lines.pop(), longer = line ? `${line} ${word}` : word;
      lines.push(...(line && shown(longer) > most ? [line, word] : [longer]));
    }
  }
  const cut = line => shown(line) > most && !line.includes("<") ? line.match(RegExp(`.{1,${most}}`, "g")) : [line];
  return lines.flatMap(cut).join("<br>");
}
function fitted({data, layout}, width) {
  const title = layout.title || {}, size = narrow() ? 13 : 17;
  const text = wrapped(title.text || "", Math.floor(Math.min(width, PRINTED) / (0.58 * size)));
  layout.title = {...title, text, font: {...title.font, size}};
  layout.margin = {...layout.margin, t: (layout.margin?.t ?? 70) + 1.2 * size * (text.split("<br>").length - 1)};
  if (narrow()) small(data, layout, width);
  delete layout.width;
  layout.autosize = true;
}
function small(data, layout, width) {
  const isPicture = data.some(one => one.type === "image");
  if (isPicture && layout.width > width) layout.height = 90 + (layout.height - 90) * width / layout.width;
  layout.font = {size: 11};
  layout.margin = {...layout.margin, l: 50, r: 10};
  const inside = width - 60, fits = share => Math.floor(share * inside / 4.4);  // characters of 9 pixels
  const domain = name => layout[name]?.domain || [0, 1];
  const panels = [...new Set(["xaxis", ...Object.keys(layout).filter(name => /^xaxis/.test(name))])];
  for (const note of layout.annotations || []) {
    note.font = {...note.font, size: 9};
    const home = panels.map(domain).find(([from, to]) => from <= note.x && note.x <= to) || [0, 1];
    const isHeading = note.xref === "paper" && note.xanchor === "center";
    if (isHeading) note.text = wrapped(note.text, fits(1.15 * (home[1] - home[0])));
  }
  for (const name of panels) {
    const [from, to] = domain(name), below = layout[name]?.title, across = layout[name.replace("x", "y")] ??= {};
    if (below?.text) layout[name].title = {...below, text: wrapped(below.text, fits(to - from)), font: {size: 9}};
    if (from > 0.05 && across.title?.text) {  // beside the panel there is no room for it
      const place = {x: from, y: domain(name.replace("x", "y"))[1], xref: "paper", yref: "paper", xanchor: "left"};
      const note = {...place, text: across.title.text, yanchor: "bottom", showarrow: false, font: {size: 9}};
      layout.annotations = [...layout.annotations || [], note];
      delete across.title;
    }
    const values = new Set(data.flatMap(one => Array.isArray(one.y) ? one.y : []).map(String));
    const long = [...values].filter(one => shown(one) > 26);
    if (!long.length) continue;
    across.labelalias = Object.fromEntries(long.map(one => [one, wrapped(one, 26)]));
    across.tickfont = {size: 8};
    layout.height = Math.max(layout.height ?? 480, 26 * values.size);
  }
  layout.legend = {...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -0.3, yanchor: "top", yref: "paper"};
}
async function library() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), one => one.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
async function draw() {
  const places = [...document.querySelectorAll(".figure")];
  if (!places.length) return;
  await library();
  for (const place of places) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    const drawn = place.querySelector(".plotly-graph-div");
    fitted(figure, place.clientWidth);
    place.style.height = drawn.style.height = `${figure.layout.height ?? 480}px`;
    await Plotly.newPlot(drawn, {...figure, config: {responsive: true}});
  }
  const widths = width => document.querySelectorAll(".plotly-graph-div").forEach(
    one => Plotly.relayout(one, width ? {width} : {width: null, autosize: true}));
  addEventListener("beforeprint", () => widths(680));
  addEventListener("afterprint", () => widths(null));
}
draw().catch(error => document.querySelectorAll(".figure").forEach(
  one => one.append("This figure needs a browser of 2023 or later: " + error)));
"""

TEMPLATE = """{% extends 'basic/index.html.j2' %}
{% block header %}<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ nb.metadata.title | escape }}</title><style>{{ resources.style }}</style></head><body>
{% endblock header %}
{% block input_group %}{% if cell.cell_type == 'code' %}<details class="code"><summary>code</summary>
{{ super() }}</details>{% else %}{{ super() }}{% endif %}{% endblock input_group %}
{% block footer %}{{ resources.scripts }}</body></html>{% endblock footer %}
"""


def resources(figures: bool) -> dict[str, str]:
    """What the template needs beside the notebook; plotly.js is packed: 2.0 MB instead of 4.8."""
    packed = base64.b64encode(gzip.compress(offline.get_plotlyjs().encode(), 9, mtime=0)).decode() if figures else ""
    library = f'<script type="text/plain" id="plotly">{packed}</script>\n' if figures else ""
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    return {"style": style, "scripts": f"{library}<script>{DRAW}</script>"}
