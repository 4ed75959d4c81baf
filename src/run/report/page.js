// Draws the charts on other axes, shows values under the pointer, and saves charts as SVG and values as CSV.
// Without it the page has the same charts over steps; plot.rs and axis.rs draw them by the rules that are here.
'use strict';
{
  const EDGE = 1000, MAX_DOTS = 80, MAX_THICK = 400;
  const CSV = 'run,series,step,tokens,value';
  // how the horizontal axis is drawn, and over how many steps curves are smoothed (0: not)
  const view = { axis: 'step', log: false, smooth: 0 };

  // --- the values, as they are in the page ---

  const runs = [...document.querySelectorAll('pre.data')].map(pre => {
    const rows = pre.textContent.trim().split('\n').slice(1), series = new Map();
    for (const row of rows) {
      const [key, step, tokens, value] = row.split(',');
      if (!series.has(key)) series.set(key, []);
      series.get(key).push({ step: +step, tokens: tokens === '' ? null : +tokens, value: +value, row });
    }
    return { name: pre.dataset.name, series };
  });
  const charts = [...document.querySelectorAll('.charts figure')].map(figure => ({
    figure,
    title: figure.querySelector('figcaption').textContent,
    plot: figure.querySelector('.plot'),
    scale: figure.dataset.scale,
    log: figure.dataset.scale === 'log',
    curves: [...figure.querySelectorAll('.curve')].map(path => ({
      path,
      run: runs[path.dataset.run],
      key: path.dataset.series,
      name: path.dataset.name,
      colour: path.classList[0],
      style: path.getAttribute('style') ?? '',
      own: !path.classList.contains('c0'),
      measured: path.classList.contains('bold') || path.classList.contains('dashes'),
      bold: path.classList.contains('bold'),
      dashed: path.classList.contains('dashes'),
    })),
  }));

  // --- axes ---

  const ticks = (from, to, count) => {
    const rough = (to - from) / count;
    if (!(rough > 0 && Number.isFinite(rough))) return [from];
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(f => f * power).find(step => step >= rough) ?? rough;
    const found = [];
    for (let i = Math.ceil(from / step - 1e-9); i <= Math.floor(to / step + 1e-9); i++) found.push(i * step);
    return found;
  };
  const logTicks = (from, to) => {
    const within = factors => {
      const found = [];
      for (let power = Math.floor(Math.log10(from)); power <= Math.ceil(Math.log10(to)); power++)
        for (const f of factors) found.push(f * 10 ** power);
      return found.filter(tick => tick >= from * 0.999 && tick <= to * 1.001);
    };
    const all = within([1, 2, 5]);
    return all.length < 3 ? ticks(from, to, 6) : all.length <= 7 ? all : within([1]);
  };
  const short = value => {
    const digits = (value, places) => {
      const text = value.toFixed(places);
      return text.includes('.') ? text.replace(/0+$/, '').replace(/\.$/, '') : text;
    };
    const size = Math.abs(value);
    if (size === 0) return '0';
    if (size >= 1e12) return value.toExponential(1).replace('e+', 'e');
    if (size >= 1e9) return digits(value / 1e9, 2) + 'G';
    if (size >= 1e6) return digits(value / 1e6, 2) + 'M';
    if (size >= 1e4) return digits(value / 1e3, 1) + 'k';
    if (size >= 100) return digits(value, 0);
    if (size >= 1e-2) return digits(value, 4);
    const power = Math.floor(Math.log10(size));
    return `${digits(value / 10 ** power, 2)}e${power}`;
  };
  const range = (points, key) => {
    let low = Infinity, high = -Infinity;
    for (const point of points) { low = Math.min(low, point[key]); high = Math.max(high, point[key]); }
    return [low, high];
  };
  // the part of the way from `from` to `to`
  const part = (value, [from, to], log) => {
    if (!log) return (value - from) / (to - from);
    return (Math.log10(Math.max(value, Number.MIN_VALUE)) - Math.log10(from)) / (Math.log10(to) - Math.log10(from));
  };

  // --- layout: what a chart shows in the present view ---

  // A mean whose weights fall exponentially on both sides, so that the curve does not lag behind its values.
  const smoothed = points => {
    const sums = points.map(() => 0), weights = points.map(() => 0);
    const add = order => {
      let sum = 0, weight = 0, last = null;
      for (const i of order) {
        const { step, value } = points[i], decay = last === null ? 0 : Math.exp(-Math.abs(step - last) * 2 / view.smooth);
        [sum, weight, last] = [sum * decay, weight * decay, step];
        [sums[i], weights[i]] = [sums[i] + sum, weights[i] + weight];
        [sum, weight] = [sum + value, weight + 1];
      }
    };
    const order = [...points.keys()];
    add(order);
    add(order.reverse());
    return points.map((point, i) => ({ ...point, value: (sums[i] + point.value) / (weights[i] + 1) }));
  };

  const layout = chart => {
    const unknown = new Set(), items = [];
    for (const curve of chart.curves) {
      let points = curve.run.series.get(curve.key) ?? [];
      const place = list => list.map(p => ({ ...p, x: p[view.axis] })).filter(p => !view.log || p.x > 0);
      if (view.axis === 'tokens' && points.some(p => p.tokens === null)) {
        unknown.add(curve.run.name);
        points = [];
      }
      const before = curve.measured && points[0]?.step === 0 ? points[0] : null;
      const line = place(before ? points.slice(1) : points);
      const means = curve.run.series.get(curve.key + '_mean') ?? points;
      const smooth = view.smooth && !curve.measured && curve.key !== 'lr' && points.length ? place(smoothed(means)) : null;
      items.push({ curve, line, smooth, before: before && { ...before, x: before[view.axis] } });
    }
    const all = items.flatMap(item => item.before && !view.log ? [item.before, ...item.line] : item.line);
    const own = items.filter(item => item.curve.own).flatMap(item => item.before && !view.log ? [item.before, ...item.line] : item.line);
    let [x0, x1] = range(own.length ? own : all, 'x');
    if (!(x0 <= x1)) return { items, unknown, hidden: [], notes: notes([], [], unknown, true) };
    const near = chart.scale === 'near' && !chart.log && !view.log;
    const settled = near ? x0 + (x1 - x0) / 40 : x0;
    if (view.log ? x1 <= x0 : x1 < x0 + 1) x1 = view.log ? x0 * 1.1 : x0 + 1;
    const [low, high] = range(all.filter(p => p.x >= settled && p.x <= x1 && (!chart.log || p.value > 0)), 'value');
    if (!(low <= high)) return { items, unknown, hidden: [], notes: notes([], [], unknown, true) };
    const room = low === high ? Math.max(Math.abs(low), 1e-6) * 0.1 : (high - low) * 0.05;
    const y = chart.log ? [low / 1.1, high * 1.1]
      : chart.scale === 'near' ? [low - room, high + room] : [0, high > 0 ? high * 1.05 : 1];
    const frame = {
      x: [x0, x1], y,
      across: x => part(x, [x0, x1], view.log),
      down: value => 1 - part(value, y, chart.log),
      contains: p => p.x >= x0 && p.x <= x1 && p.value >= y[0] && p.value <= y[1],
    };
    for (const item of items) {
      const inside = item.before && !(view.log && item.before.x <= 0)
        && item.before.value >= y[0] && item.before.value <= y[1];
      item.dots = item.line.length === 1 || item.curve.bold && item.line.length <= MAX_DOTS ? [...item.line] : [];
      if (inside) item.dots.push(item.before);
      item.hidden = item.before && !inside ? item.before : null;
    }
    const hidden = items.filter(item => item.hidden);
    const outside = items.filter(item => !item.before && item.line.length && !item.line.some(frame.contains));
    return {
      items, frame, hidden, unknown,
      thin: items.some(item => item.line.length > MAX_THICK)
        || items.filter(({ curve, line, before }) => curve.own && curve.measured && (line.length || before)).length > 1,
      xTicks: view.log ? logTicks(x0, x1) : ticks(x0, x1, 6).filter(tick => Number.isInteger(tick)),
      yTicks: chart.log ? logTicks(y[0], y[1]) : ticks(y[0], y[1], 7),
      notes: notes(hidden, outside.map(item => item.curve.name), unknown, false, frame),
    };
  };

  const notes = (hidden, outside, unknown, empty, frame) => {
    const found = [];
    if (hidden.length) {
      const [low, high] = range(hidden.map(item => item.hidden), 'value').map(short);
      const [{ curve }] = hidden, all = curve.key === 'val_loss' ? 'validation' : '';
      const name = hidden.length === 1 && curve.name || all, what = name && name + ' ';
      const isAbove = item => item.hidden.value > frame.y[1];
      const marks = (hidden.some(isAbove) ? '▲' : '') + (hidden.every(isAbove) ? '' : '▼');
      found.push(`${what}before training: ${low === high ? low : `${low} to ${high}`}${view.log ? '' : ` (${marks})`}`);
    }
    if (outside.length) found.push(`outside the plot: ${outside.join(', ')}`);
    if (unknown.size) found.push(`tokens per step unknown: ${[...unknown].join(', ')}`);
    if (empty && !unknown.size) found.push('no values on these axes');
    return found.join(' · ');
  };

  // --- drawing in the page ---

  const element = (name, attributes, text) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = value => String(+Math.min(9e4, Math.max(-9e4, value)).toFixed(1));
  const linePath = (frame, points, width, height) => points.map((p, i) =>
    `${i ? 'L' : 'M'}${number(frame.across(p.x) * width)} ${number(frame.down(p.value) * height)}`).join('');

  const show = chart => {
    const { plot, figure } = chart, svg = plot.querySelector('svg'), drawn = layout(chart);
    const { frame } = chart.drawn = drawn;
    const path = (attributes) => {
      const made = document.createElementNS(svg.namespaceURI, 'path');
      for (const [key, value] of Object.entries(attributes)) if (value !== '') made.setAttribute(key, value);
      return made;
    };
    figure.querySelector('.note').textContent = drawn.notes;
    plot.querySelectorAll('.x, .y, .up, .down').forEach(label => label.remove());
    svg.replaceChildren();
    plot.querySelector('.xname').textContent = view.axis === 'step' ? 'step' : 'tokens';
    svg.setAttribute('aria-label', `${chart.title} over ${view.axis === 'step' ? 'steps' : 'tokens'}`);
    if (!frame) return;
    const labels = [];
    for (const tick of drawn.yTicks) {
      svg.append(path({ class: 'grid', d: `M0 ${number(frame.down(tick) * EDGE)}H${EDGE}` }));
      labels.push(element('b', { class: 'y', style: `top:${(frame.down(tick) * 100).toFixed(2)}%` }, short(tick)));
    }
    for (const tick of drawn.xTicks) {
      svg.append(path({ class: 'grid', d: `M${number(frame.across(tick) * EDGE)} 0V${EDGE}` }));
      labels.push(element('b', { class: 'x', style: `left:${(frame.across(tick) * 100).toFixed(2)}%` }, short(tick)));
    }
    for (const { curve, line, smooth, dots } of drawn.items) {
      const width = curve.bold ? ' bold' : curve.dashed ? ' dashes' : smooth ? ' pale' : drawn.thin ? ' thin' : '';
      const add = (classes, d) => svg.append(path({ class: `${curve.colour} ${classes}`, style: curve.style, d }));
      add(`curve${width}`, linePath(frame, line, EDGE, EDGE));
      if (smooth) add('curve smooth', linePath(frame, smooth, EDGE, EDGE));
      const dot = p => `M${number(frame.across(p.x) * EDGE)} ${number(frame.down(p.value) * EDGE)}h0`;
      if (dots.length) add('dots', dots.map(dot).join(''));
    }
    for (const { curve, hidden } of view.log ? [] : drawn.hidden) {
      const up = hidden.value > frame.y[1];
      const left = (Math.min(1, Math.max(0, frame.across(hidden.x))) * 100).toFixed(2);
      const attributes = { class: `${curve.colour} ${up ? 'up' : 'down'}`, style: `left:${left}%${curve.style && ';' + curve.style}` };
      labels.push(element('b', attributes, up ? '▲' : '▼'));
    }
    plot.querySelector('.xname').before(...labels);
  };

  // --- the value under the pointer ---

  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle].x <= x) low = middle; else high = middle;
    }
    return Math.abs(points[low].x - x) <= Math.abs(points[high].x - x) ? points[low] : points[high];
  };
  for (const chart of charts) {
    const { plot } = chart, line = plot.querySelector('.line'), tip = plot.querySelector('.tip');
    plot.addEventListener('pointermove', event => {
      const { frame, items } = chart.drawn ??= layout(chart);
      if (!frame) return;
      const box = plot.getBoundingClientRect();
      const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)), [x0, x1] = frame.x;
      const x = view.log ? x0 * (x1 / x0) ** at : x0 + at * (x1 - x0);
      tip.textContent = view.axis === 'step' ? `step ${Math.round(x).toLocaleString('en')}` : `${short(x)} tokens`;
      for (const { curve, line, smooth, before } of items) {
        const points = smooth ?? (before && !view.log ? [before, ...line] : line);
        if (!points.length) continue;
        const row = element('div', {}), label = element('em', { class: curve.colour, style: curve.style }, curve.name);
        row.append(label, ` ${Number(nearest(points, x).value.toPrecision(5))}`);
        tip.append(row);
      }
      line.style.cssText = `display:block;left:${at * 100}%`;
      tip.style.cssText = `display:block;${at < 0.5 ? `left:calc(${at * 100}% + 10px)` : `right:calc(${100 - at * 100}% + 10px)`}`;
    });
    plot.addEventListener('pointerleave', () => { line.style.display = tip.style.display = 'none'; });
  }

  // --- files ---

  const save = (name, type, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const fileName = (title, ending) => {
    const plain = text => text.replace(/[^A-Za-z0-9.]+/g, '-').replace(/^[-.]+|[-.]+$/g, '');
    const own = charts[0]?.curves.find(curve => curve.own)?.run ?? runs[0];
    const several = document.querySelector('table') !== null;
    return [several ? 'comparison' : plain(own?.name ?? ''), plain(title.toLowerCase())].filter(Boolean).join('-') + ending;
  };
  // A name from outside as a cell. A leading ' keeps a spreadsheet from taking it as a formula.
  const cell = text => {
    const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const rows = (run, keys) => [...run.series].filter(([key]) => !keys || keys.has(key))
    .flatMap(([, points]) => points.map(point => `${cell(run.name)},${point.row}`));
  const csvOf = chart => chart.curves
    .flatMap(({ run, key }) => rows(run, new Set([key, key + '_mean'])));
  const csv = lines => [CSV, ...lines, ''].join('\r\n');

  // The chart as a drawing of its own: light, with text in it, and with attributes instead of a style sheet.
  const svgOf = chart => {
    const W = 900, H = 520, drawn = layout(chart), { frame } = drawn;
    const space = document.querySelector('svg').namespaceURI;
    const node = (name, attributes, text) => {
      const made = document.createElementNS(space, name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const light = element('div', { class: 'light', hidden: '' }), cache = new Map();
    document.body.append(light);
    const colour = (classes, style) => {
      const key = `${classes} ${style}`;
      if (!cache.has(key)) {
        const probe = element('i', { class: classes, style: `${style};color:var(--c)` });
        light.append(probe);
        cache.set(key, getComputedStyle(probe).color);
      }
      return cache.get(key);
    };
    const text = '#1b1e23', soft = '#5a6270', grid = '#dfe3e8';
    const svg = node('svg', { viewBox: `0 0 ${W} ${H}`, width: W, height: H, 'font-family': 'Helvetica, Arial, sans-serif', 'font-size': 13 });
    svg.append(node('rect', { width: W, height: H, fill: '#ffffff' }));
    svg.append(node('text', { x: 76, y: 24, fill: text, 'font-size': 15, 'font-weight': 'bold' }, chart.title));
    const measure = document.createElement('canvas').getContext('2d');
    measure.font = '13px Helvetica, Arial, sans-serif';
    let [x, top] = [76, 44];
    for (const entry of chart.figure.querySelectorAll('.legend span')) {
      const name = entry.textContent, width = measure.measureText(name).width + 50;
      if (x > 76 && x + width > W - 20) [x, top] = [76, top + 20];
      const bold = entry.classList.contains('bold'), dashed = entry.classList.contains('dashes');
      const line = { x1: x, x2: x + 20, y1: top - 4, y2: top - 4, stroke: colour(entry.classList[0], entry.getAttribute('style') ?? ''), 'stroke-width': bold ? 3 : 2 };
      svg.append(node('line', dashed ? { ...line, 'stroke-dasharray': '5 4' } : line));
      svg.append(node('text', { x: x + 26, y: top, fill: text }, name));
      x += width;
    }
    if (drawn.notes) svg.append(node('text', { x: 76, y: top += 19, fill: soft, 'font-size': 12 }, drawn.notes));
    const [left, width, height] = [76, W - 76 - 24, H - top - 14 - 54];
    top += 14;
    const labels = node('g', { fill: soft, 'font-size': 12 }), lines = node('g', { stroke: grid, fill: 'none' });
    const y = tick => top + frame.down(tick) * height;
    for (const tick of drawn.yTicks ?? []) {
      lines.append(node('path', { d: `M${left} ${number(y(tick))}h${width}` }));
      labels.append(node('text', { x: left - 8, y: number(y(tick) + 4), 'text-anchor': 'end' }, short(tick)));
    }
    for (const tick of drawn.xTicks ?? []) {
      const at = number(left + frame.across(tick) * width);
      lines.append(node('path', { d: `M${at} ${top}v${number(height)}` }));
      labels.append(node('text', { x: at, y: top + height + 18, 'text-anchor': 'middle' }, short(tick)));
    }
    labels.append(node('text', { x: left + width / 2, y: top + height + 40, 'text-anchor': 'middle' }, view.axis === 'step' ? 'step' : 'tokens'));
    const middle = number(top + height / 2);
    const yName = chart.plot.querySelector('.yname').textContent;
    labels.append(node('text', { x: 20, y: middle, transform: `rotate(-90 20 ${middle})`, 'text-anchor': 'middle' }, yName));
    // an inner svg cuts off what is outside the frame; dots at its edge stay whole
    const over = node('g', {});
    const inner = node('svg', { x: left, y: top, width, height, viewBox: `0 0 ${width} ${height}`, overflow: 'hidden' });
    for (const { curve, line, smooth, dots } of frame ? drawn.items : []) {
      const stroke = colour(curve.colour, curve.style);
      const add = (points, attributes) => inner.append(node('path',
        { d: linePath(frame, points, width, height), fill: 'none', stroke, 'stroke-linejoin': 'round', ...attributes }));
      if (line.length > 1) add(line, curve.bold ? { 'stroke-width': 2.4 } : curve.dashed ? { 'stroke-width': 1.6, 'stroke-dasharray': '5 4' }
        : smooth ? { 'stroke-width': 1, 'stroke-opacity': 0.28 } : drawn.thin ? { 'stroke-width': 1, 'stroke-opacity': 0.8 } : { 'stroke-width': 1.6 });
      if (smooth) add(smooth, { 'stroke-width': 2 });
      const inside = dots.filter(frame.contains);
      for (const p of inside) over.append(node('circle', { cx: number(left + frame.across(p.x) * width), cy: number(y(p.value)), r: 3, fill: stroke }));
    }
    for (const { curve, hidden } of view.log ? [] : drawn.hidden) {
      const up = hidden.value > frame.y[1], at = frame.across(hidden.x) * width;
      const d = up ? `M${number(at)} 12l5 -9l5 9z` : `M${number(at)} ${number(height - 12)}l5 9l5 -9z`;
      inner.append(node('path', { d, fill: colour(curve.colour, curve.style) }));
    }
    svg.append(lines, inner, node('rect', { x: left, y: top, width, height, fill: 'none', stroke: '#b6bcc6' }), over, labels);
    light.remove();
    return new XMLSerializer().serializeToString(svg);
  };

  // --- controls ---

  const button = (name, title, click) => {
    const made = element('button', { type: 'button', title }, name);
    made.addEventListener('click', click);
    return made;
  };
  const box = (name, checked, change) => {
    const label = element('label', {}), input = element('input', { type: 'checkbox' });
    input.checked = checked;
    input.addEventListener('change', () => change(input.checked));
    label.append(input, name);
    return label;
  };
  const select = (name, options, change) => {
    const label = element('label', {}, name), made = element('select', {});
    for (const [value, text] of options) made.append(element('option', { value }, text));
    made.addEventListener('change', () => change(made.value));
    label.append(made);
    return label;
  };
  const showAll = () => charts.forEach(show);
  for (const chart of charts) {
    const tools = element('span', { class: 'tools' });
    tools.append(
      box('log y', chart.log, log => { chart.log = log; show(chart); }),
      button('SVG', 'Save this chart as it is shown', () => save(fileName(chart.title, '.svg'), 'image/svg+xml', svgOf(chart))),
      button('CSV', 'Save the values of this chart', () => save(fileName(chart.title, '.csv'), 'text/csv', csv(csvOf(chart)))),
    );
    chart.figure.querySelector('figcaption').append(tools);
  }
  const knowsTokens = runs.some(run => [...run.series.values()].some(points => points.some(p => p.tokens > 0)));
  const steps = Math.max(0, ...runs.map(run => Math.max(0, ...[...run.series.values()].map(points => points.at(-1).step))));
  const over = [10, 30, 100, 300, 1000, 3000].filter(n => 3 * n <= steps).map(n => [n, `over ${n} steps`]);
  const controls = element('div', { class: 'tools controls' });
  if (knowsTokens) controls.append(select('x axis', [['step', 'steps'], ['tokens', 'tokens']], axis => { view.axis = axis; showAll(); }));
  controls.append(box('log x', false, log => { view.log = log; showAll(); }));
  if (over.length) controls.append(select('smoothing', [[0, 'none'], ...over], n => { view.smooth = +n; showAll(); }));
  controls.append(button('all data (CSV)', 'Save the values of all charts', () => save(fileName('', '.csv'), 'text/csv', csv(runs.flatMap(run => rows(run))))));
  if (charts.length) document.querySelector('.charts').before(controls);
}
