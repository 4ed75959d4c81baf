// Shows the values of all curves at the step under the pointer; they are read back from where the curves were drawn.
for (const plot of document.querySelectorAll('.plot')) {
  const range = name => plot.dataset[name].split(' ').map(Number);
  const [x0, x1] = range('x'), [y0, y1] = range('y'), log = plot.dataset.log === '1';
  const value = y => log ? y0 * (y1 / y0) ** (1 - y / 1000) : y0 + (1 - y / 1000) * (y1 - y0);
  const line = plot.querySelector('.line'), tip = plot.querySelector('.tip');
  let curves;
  const read = () => [...plot.querySelectorAll('.curve')].map(path => ({
    name: path.dataset.name,
    colour: path.classList[1],
    points: path.getAttribute('d').slice(1).split('L').map(point => point.split(' ').map(Number)),
  }));
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= x) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
  };
  plot.addEventListener('pointermove', event => {
    curves ??= read();
    const box = plot.getBoundingClientRect();
    const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    tip.textContent = `step ${Math.round(x0 + part * (x1 - x0)).toLocaleString()}`;
    for (const { name, colour, points } of curves) {
      const row = document.createElement('div'), label = document.createElement('em');
      label.className = colour;
      label.textContent = name;
      row.append(label, ` ${Number(value(nearest(points, part * 1000)[1]).toPrecision(4))}`);
      tip.append(row);
    }
    line.style.cssText = `display:block;left:${part * 100}%`;
    tip.style.cssText = 'display:block;' + (part < 0.5 ? `left:calc(${part * 100}% + 10px)` : `right:calc(${100 - part * 100}% + 10px)`);
  });
  plot.addEventListener('pointerleave', () => { line.style.display = tip.style.display = 'none'; });
}
