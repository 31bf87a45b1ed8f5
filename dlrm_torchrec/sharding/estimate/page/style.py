"""The page's style sheet: one colour for memory and compute, another for comms; for light, dark and print."""

STYLE = """
:root {
  --paper: #fff; --ink: #16191d; --muted: #59616b; --line: #dfe2e6; --track: #eef0f3; --hatch: #b4bac2;
  --a1: #0b4f97; --a2: #4b8fd1; --a3: #a9cdee; --c1: #96430b; --c2: #d6843d; --c3: #f1c597;
  --s0: #0b4f97; --s1: #3f80c2; --s2: #78abdf; --s3: #a5c9eb; --s4: #c9def3;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #121417; --ink: #e8eaed; --muted: #9ca5af; --line: #2c3137; --track: #1f2328; --hatch: #4d555e;
    --a1: #92c7fb; --a2: #4787c8; --a3: #28517b; --c1: #f5b681; --c2: #cb762e; --c3: #7f4719;
    --s0: #a6d2fd; --s1: #6fa9e3; --s2: #4781bd; --s3: #305d8c; --s4: #264565;
  }
}
* { box-sizing: border-box; }
html { text-size-adjust: 100%; print-color-adjust: exact; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; }
h1, h2, h3, p, dl, dd, ol, ul { margin: 0; padding: 0; }
h1 { font-size: 1.85rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 + .scroll { margin-top: 1rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 2.5rem 0 .35rem; }
section { margin-top: 3.5rem; padding-top: 1.5rem; border-top: 2px solid var(--ink); }
a { color: inherit; text-decoration-color: var(--a2); text-underline-offset: .2em; }
.eyebrow { color: var(--muted); margin-bottom: .25rem; }
.lede { color: var(--muted); max-width: 62ch; margin-top: .5rem; }
.compared th[colspan] { text-align: left; }
strong { white-space: nowrap; font-weight: 600; }
.note { color: var(--muted); font-size: .87rem; }
sup { line-height: 0; }
.unit { color: var(--muted); font-size: .87em; }

.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1.5rem 2rem; margin-top: 1.75rem;
}
.figures dt { color: var(--muted); font-size: .87rem; }
.figures dd:not(.note) { font-size: 1.65rem; line-height: 1.3; font-weight: 600; letter-spacing: -.01em; }
.figures dd:not(.note) .unit { font-size: .6em; font-weight: 500; }

.scroll {
  overflow-x: auto;  /* a shadow at an end shows that there is more to scroll */
  background:
    linear-gradient(to right, var(--paper) 40%, transparent) left / 2rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to right, var(--hatch), transparent) left / .6rem 100% no-repeat scroll,
    linear-gradient(to left, var(--hatch), transparent) right / .6rem 100% no-repeat scroll;
}
.scroll + .note { margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
caption { text-align: left; color: var(--muted); padding-bottom: .5rem; }
caption.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3rem 0 .3rem 1rem; text-align: right; white-space: nowrap; font-weight: 400; }
tr:first-child > th:first-child, tbody th:first-child { text-align: left; padding-left: 0; }
.chart tbody th, .compared tbody th {
  white-space: normal; overflow-wrap: anywhere; min-width: 5rem; max-width: 16rem;
}
.compared tbody th { min-width: 6.5rem; }
thead th { color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--line); }
th[colspan] { text-align: center; border: 0; padding-bottom: 0; }
.ends { display: flex; justify-content: space-between; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.marked th { font-weight: 650; }
.mark {
  font-weight: 600; font-size: .8em; color: var(--paper); background: var(--ink);
  padding: .1em .5em; border-radius: 1em; margin-left: .35em;
}

.bar { display: flex; height: 1rem; background: var(--track); overflow: hidden; }
.bar span { flex: none; }
.chart .bar { min-width: 11rem; }
.chart .drawn { width: 40%; }
.compared .bar { min-width: 9rem; }
.critical .bar { height: 2rem; margin: .75rem 0 1.5rem; }
.weights, .fwd_compute { background: var(--a1); }
.optimizer, .bwd_compute { background: var(--a2); }
.buffers, .prefetch_compute { background: var(--a3); }
.fwd_comms { background: var(--c1); }
.bwd_comms { background: var(--c2); }
.input_dist_comms { background: var(--c3); }
.free { background: var(--track); }
.reserved { background: repeating-linear-gradient(135deg, var(--hatch) 0 1.5px, var(--track) 1.5px 5px); }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.25rem;
  font-size: .87rem; color: var(--muted); margin: .25rem 0 .75rem;
}
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .45rem; vertical-align: -.06rem; }
thead .swatch { margin: 0 .3rem; }
.swatch.free { box-shadow: inset 0 0 0 1px var(--hatch); }
.columns { display: grid; grid-template-columns: minmax(15rem, 1fr) 2fr; gap: 1.5rem 3rem; align-items: start; }

.placement { --columns: minmax(7rem, 11rem) 9rem minmax(10rem, 1fr) 8.5rem 8.5rem 5rem; font-size: .87rem; }
.axis, .table > summary { display: grid; grid-template-columns: var(--columns); column-gap: 1rem; align-items: center; }
.axis { color: var(--muted); border-bottom: 1px solid var(--line); padding: .3rem 0 .3rem 1rem; }
.axis > :nth-child(2), .axis > :last-child, .shape, .bytes { text-align: right; }
.ticks { position: relative; height: 1.5em; }
.ticks span { position: absolute; padding-left: 1px; }
.tables { list-style: none; }
.tables li { border-bottom: 1px solid var(--line); }
.table > summary { padding: .3rem 0 .3rem 1rem; position: relative; list-style: none; }
summary::-webkit-details-marker { display: none; }
.table > summary::before {
  content: ""; position: absolute; left: 0; top: .8em; width: .38em; height: .38em; transform: rotate(-45deg);
  border: solid var(--muted); border-width: 0 1.5px 1.5px 0;
}
.table[open] > summary::before { transform: rotate(45deg); }
.table > summary:hover .name { text-decoration: underline; text-decoration-color: var(--a2); }
.name { font-weight: 500; overflow-wrap: anywhere; }
.track {
  position: relative; height: 1rem; overflow: hidden;
  background: repeating-linear-gradient(to right, var(--paper) 0 1px, transparent 1px var(--cell)) var(--track);
}
.track span { position: absolute; top: 0; bottom: 0; }
.shade-0 { background: var(--s0); }
.shade-1 { background: var(--s1); }
.shade-2 { background: var(--s2); }
.shade-3 { background: var(--s3); }
.shade-4 { background: var(--s4); }
.opened { padding: .5rem 0 1.5rem 1rem; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem 1.5rem;
  margin-bottom: 1.25rem;
}
.facts dt { color: var(--muted); }
.all > summary { color: var(--muted); padding: .6rem 0; font-size: .87rem; text-decoration: underline; }

summary { cursor: pointer; }
summary:focus-visible, .scroll:focus-visible, a:focus-visible { outline: 2px solid var(--a2); outline-offset: 2px; }

@media (max-width: 46rem) {
  main { padding-top: 1.5rem; }
  .columns { grid-template-columns: minmax(0, 1fr); }
  .chart .bar { min-width: 10rem; }
  th, td { padding-left: .75rem; }
  .axis > :not(.ticks) { display: none; }
  .axis { grid-template-columns: 1fr; }
  .table > summary {
    grid-template: "name name shape" "track track track" "sharding ranks bytes" / auto 1fr auto;
    row-gap: .15rem; padding-block: .5rem;
  }
  .name { grid-area: name; } .bytes { grid-area: bytes; } .track { grid-area: track; }
  .shape { grid-area: shape; color: var(--muted); }
  .sharding { grid-area: sharding; color: var(--muted); }
  .ranks { grid-area: ranks; color: var(--muted); }
  .chart tr:first-child > th:first-child, .chart tbody th, .compared tbody th {
    position: sticky; left: 0; z-index: 1; background: var(--paper);
  }
}
@media print {
  html, body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  section ~ section { break-before: page; }
  tr, li, .columns { break-inside: avoid; }
  h3, .legend, .note { break-after: avoid; }
  .scroll { overflow: visible; background: none; }
}
"""
