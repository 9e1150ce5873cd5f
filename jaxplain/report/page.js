(() => {
  "use strict";
  const get = id => document.getElementById(id), list = get("list");
  const data = JSON.parse(get("data").textContent);
  const { words, classes, names, errors, sheet: SHEET, paired } = data;

  // Numbers as told.py writes them.
  const minus = text => text.replace(/-/g, "−");
  const raised = (v, digits) => v.toExponential(digits).replace(/e([+-])(\d)$/, (_, s, d) => `e${s}0${d}`);
  function general(v, digits) {
    const power = v ? +v.toExponential(digits - 1).split("e")[1] : 0;
    if (power >= -4 && power < digits) return String(+v.toPrecision(digits));
    const [front, back] = raised(v, digits - 1).split("e");
    return `${+front}e${back}`;
  }
  const signed = v => (v < 0 || Object.is(v, -0) ? "−" : "+") + minus(general(Math.abs(v), 4));
  const brief = v => v ? minus(raised(v, 1)) : "0";
  const percent = v => (100 * v).toFixed(1) + "%";
  function share(v) {
    if (!isFinite(v)) return "f(x) = f(baseline)";
    if (v > 10) return ">1000%";
    return v < 1e-6 ? (v ? "<0.0001%" : "0%") : +(100 * v).toPrecision(2) + "%";
  }
  const even = v => { const r = Math.round(v); return Math.abs(v % 1) === .5 && r % 2 ? r - 1 : r; };
  const exact = (score, error) => signed(score) + (error === undefined ? "" : ` ± ${general(error, 2)}`);
  const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt()};`);

  // Examples as drawn.py draws them.
  function tokens([, , ids, scores, deviations]) {
    const largest = scores.reduce((m, s) => Math.max(m, Math.abs(s)), 0);
    return ids.map((id, k) => {
      const flag = +words[id][0], next = k + 1 < ids.length && +words[ids[k + 1]][0] & 1;
      const step = largest && isFinite(scores[k]) ? even(scores[k] / largest * 10) : 0, marks = [];
      if (flag & 1) marks.push("g");
      if (next) marks.push("h");
      if (flag & 2) marks.push("s");
      if (step) marks.push(step > 0 ? `p${step}` : `m${-step}`);
      const kind = marks.length ? ` class="${marks.join(" ")}"` : "";
      return `${k && !(flag & 1) ? " " : ""}<span${kind} tabindex="${k ? -1 : 0}" data-v="` +
        `${exact(scores[k], deviations && deviations[k])}">${escape(words[id].slice(1))}</span>`;
    }).join("");
  }
  function bars([, , set, places, scores, deviations]) {
    const largest = Math.abs(scores[0]) || 1, more = names[set].length - places.length;
    return places.map((place, k) => {
      const score = scores[k], side = score > 0 ? "plus" : "minus";
      return `<span class="name">${escape(names[set][place])}</span><span class="track"><i class="${side}" ` +
        `style="width:${even(1000 * Math.abs(score) / largest) / 10}%"></i></span>` +
        `<span class="n">${exact(score, deviations && deviations[k])}</span>`;
    }).join("") + (more ? `<span class="soft">and ${more} smaller</span>` : "");
  }
  const drawn = {
    t: part => `<p class="tokens">${tokens(part)}</p>`, b: part => `<div class="bars">${bars(part)}</div>`, h: part => part[2],
  };
  function body(r) {
    if (r.failed) return `<p class="fail">failed: ${escape(r.error)}</p>` + (r.text ? `<p class="soft">${escape(r.text)}</p>` : "");
    return r.parts.map(part => (part[1] ? `<p class="part">${escape(part[1])}</p>` : "") + drawn[part[0]](part)).join("")
      || `<p class="soft">${escape(data.nothing)}</p>`;
  }
  function facts(r) {
    if (r.failed) return "";
    const bold = name => `<b>${escape(name)}</b>`, known = v => v !== null && v !== undefined, found = [];
    if (known(r.predicted) && known(r.p)) found.push(`<span>predicted ${bold(r.predicted)} <span class="n">${percent(r.p)}</span></span>`);
    const mark = r.ok === 1 ? " ✓" : r.ok === 0 ? ' <span class="wrong">✗ wrong</span>' : "";
    if (known(r.label)) found.push(`<span>label ${bold(r.label)}${mark}</span>`);
    if (known(r.target)) found.push(`<span>explained ${bold(r.target)}${known(r.other) ? ` over ${bold(r.other)}` : ""}</span>`);
    if (known(r.output)) found.push(`<span class="n">f(x) ${signed(r.output)}</span>`);
    if (known(r.residue)) found.push(`<span class="n">gap ${brief(r.residue)}${known(r.gap) ? ` (${share(r.gap)})` : ""}</span>`);
    if (known(r.effort)) found.push(`<span class="n">effort ${r.effort}</span>`);
    if (r.converged === 0) found.push('<span class="wrong">✗ not converged</span>');
    if (r.cut) found.push(`<span>✂ ${escape(r.cut)}</span>`);
    return found.join("");
  }
  const head = r => `<article id="e${r.index}"><div class="facts"><a class="id n" href="#e${r.index}">${r.index}</a>`;
  const side = (r, k) => `<div class="side"><div class="facts"><b class="run">${escape(data.runs[k])}</b>${facts(r)}</div>${body(r)}</div>`;
  const article = r => paired
    ? `${head(r)}<span>${escape(r.told)}</span></div>${r.sides.map(side).join("")}</article>`
    : `${head(r)}${facts(r)}</div>${body(r)}</article>`;

  // Rows of `packed.pack_view`, by name.
  function read(row) {
    if (row.length === 3) return { index: row[0], failed: true, error: errors[row[1]], text: row[2] };
    const [index, predicted, p, label, ok, target, other, output, residue, gap, cut, effort, converged, parts] = row;
    return { index, predicted: classes[predicted], p, label: classes[label], ok, target: classes[target], other: classes[other],
      output, residue, gap, cut, effort, converged, parts };
  }
  const rows = data.rows.map(row => {
    if (!paired) return read(row);
    const [[agreement, same, told], ...sides] = row;
    const seen = sides.map(read);
    return { index: seen[0].index, label: seen[0].label ?? seen[1].label, agreement, same, told, sides: seen };
  });
  const spoken = r => r.sides ? r.sides.map(spoken).join(" ") : r.failed ? `${r.text} ${r.error}` : r.parts.map(part =>
    part[0] === "t" ? part[2].map(id => (+words[id][0] & 1 ? "" : " ") + words[id].slice(1)).join("")
      : part[0] === "b" ? ` ${part[3].map(place => names[part[2]][place]).join(" ")}` : ` ${part[3]}`).join("");
  const text = r => r.spoken ??= `${spoken(r).toLowerCase()} `;

  // What each control keeps, given its value; an empty value keeps all.
  const least = name => (r, v) => r[name] !== null && r[name] !== undefined && r[name] >= v / 100;
  const most = name => (r, v) => r[name] !== null && r[name] !== undefined && r[name] <= v / 100;
  const flag = name => (r, v) => r[name] === +v;
  const keeps = {
    label: (r, v) => r.label === v, predicted: (r, v) => r.predicted === v, ok: flag("ok"), converged: flag("converged"),
    status: (r, v) => !!r.failed === (v === "failed"), cut: (r, v) => !!r.cut === (v === "1"), same: flag("same"),
    comparable: (r, v) => (r.agreement === null) === (v === "0"), pmin: least("p"), pmax: most("p"), gmin: least("gap"), gmax: most("gap"),
    amin: (r, v) => r.agreement !== null && r.agreement >= v, amax: (r, v) => r.agreement !== null && r.agreement <= v,
    search: (r, v) => text(r).includes(v),
  };
  const form = get("tools"), controls = [...form.querySelectorAll("[data-keep]")], sort = get("sort");
  const count = get("count"), at = get("at"), previous = get("previous"), next = get("next");
  const wanted = c => c.type !== "search" ? c.value : c.value.toLowerCase().trim().replace(/^"(.+)"$/, " $1 "); // "word": whole words
  let order = [...rows.keys()], shown = order, page = 0;
  function arrange() {
    const [, name, way] = sort.value.match(/^(\w+)([+-])$/), turn = way === "+" ? 1 : -1;
    const key = rows.map(r => r[name] ?? null);
    order = [...rows.keys()].sort((a, b) => {
      const x = key[a], y = key[b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // what is not known comes last
      return (x < y ? -turn : x > y ? turn : 0) || a - b;
    });
  }
  function choose() {
    const set = controls.map(c => [keeps[c.dataset.keep], wanted(c)]).filter(([, v]) => v !== "");
    shown = order.filter(k => set.every(([keep, v]) => keep(rows[k], v)));
    page = 0;
  }
  const comma = n => n.toLocaleString("en-US");
  function tell() {
    const last = Math.max(0, Math.ceil(shown.length / SHEET) - 1), first = page * SHEET;
    count.textContent = shown.length === rows.length ? `${comma(rows.length)} in all` : `${comma(shown.length)} of ${comma(rows.length)}`;
    at.textContent = shown.length ? `${comma(first + 1)}–${comma(Math.min(first + SHEET, shown.length))}` : "none";
    previous.disabled = page <= 0;
    next.disabled = page >= last;
  }
  function draw() {
    list.innerHTML = shown.slice(page * SHEET, (page + 1) * SHEET).map(k => article(rows[k])).join("");
    tell();
  }
  function turn(to) {
    page = to;
    draw();
    get("examples").scrollIntoView();
  }
  function reset() {
    form.reset();
    arrange();
    choose();
  }
  function follow() { // a link to an example that is on another sheet
    const index = /^#e(\d+)$/.exec(location.hash)?.[1];
    if (index === undefined) return;
    const place = rows.findIndex(r => r.index === +index);
    if (place < 0) return;
    if (!shown.includes(place)) reset();
    page = Math.floor(shown.indexOf(place) / SHEET);
    draw();
    const found = get(`e${index}`);
    found.scrollIntoView();
    requestAnimationFrame(() => found.scrollIntoView()); // what is above it has taken its size by now
  }
  form.addEventListener("submit", e => e.preventDefault());
  form.addEventListener("input", e => {
    if (e.target === sort) arrange();
    choose();
    draw();
  });
  get("reset").onclick = () => { reset(); draw(); };
  previous.onclick = () => turn(page - 1);
  next.onclick = () => turn(page + 1);
  addEventListener("hashchange", follow);
  document.addEventListener("click", e => {
    const link = e.target.closest("[data-find]"), search = get("search");
    if (!link || !search) return;
    reset();
    search.value = `"${link.dataset.find}"`;
    choose();
    draw();
  });
  // One stop of the Tab key per sentence; the arrow keys go from token to token.
  list.addEventListener("keydown", e => {
    if (e.target.matches(".map i")) {
      const word = e.target.parentNode, row = [...word.children].indexOf(e.target);
      const beside = { ArrowRight: word.nextElementSibling, ArrowLeft: word.previousElementSibling }[e.key];
      const to = beside ? beside.children[row] : { ArrowDown: e.target.nextElementSibling, ArrowUp: e.target.previousElementSibling }[e.key];
      if (to && to.dataset.v) { e.preventDefault(); to.focus(); }
      return;
    }
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[e.key];
    if (!step || !e.target.matches(".tokens span")) return;
    const to = e.target[step];
    if (to) { e.preventDefault(); to.focus(); }
  });
  // Words to search are made ready while nothing else is to do, or else when they are first looked for.
  function prepare(k, idle) {
    while (k < rows.length && idle.timeRemaining() > 1) text(rows[k++]);
    if (k < rows.length) requestIdleCallback(later => prepare(k, later));
  }
  window.requestIdleCallback?.(idle => prepare(0, idle));
  form.reset(); // a browser may bring back what was chosen before
  document.documentElement.classList.add("js");
  if (list.children.length < Math.min(SHEET, rows.length)) draw(); // long ones are not all there yet
  tell();
  follow();
})();
