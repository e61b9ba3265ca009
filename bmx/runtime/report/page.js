'use strict';
(async () => {
  const nonce = document.currentScript.nonce;
  const packed = document.getElementById('plotly').textContent;
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.nonce = nonce;
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const figures = JSON.parse(document.getElementById('figures').textContent);
  const plots = [...document.querySelectorAll('.plot')];
  const slider = document.getElementById('smoothing');
  const log = document.getElementById('log');
  const config = { responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'] };

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return {
      'font.color': of('--text'), 'xaxis.gridcolor': of('--line'), 'yaxis.gridcolor': of('--line'),
      'xaxis.linecolor': of('--line'), 'hoverlabel.bgcolor': of('--card'),
      'hoverlabel.bordercolor': of('--line'), 'modebar.color': of('--soft'),
      'modebar.activecolor': of('--text'), 'modebar.bgcolor': 'rgba(0,0,0,0)',
    };
  };
  const scale = (figure) => {
    const positive = figure.data.some((t) => t.meta.role === 'line' && t.y.some((y) => y > 0));
    return { 'yaxis.type': log.checked && positive ? 'log' : 'linear', 'yaxis.autorange': true };
  };
  // Exponential mean, corrected for its start, as in Adam.
  const smooth = (values, weight) => {
    let sum = 0, norm = 0;
    return values.map((v) => {
      sum = weight * sum + (1 - weight) * v;
      norm = weight * norm + (1 - weight);
      return sum / norm;
    });
  };
  const hidden = plots.map(() => new Set());
  const show = async (plot, i) => {
    const weight = Number(slider.value), data = figures[i].data;
    const line = (curve) => data.find((t) => t.meta.role === 'line' && t.meta.curve === curve);
    const smoothed = new Set(data.filter((t) => t.meta.role === 'smooth').map((t) => t.meta.curve));
    const values = { x: [], y: [], visible: [], opacity: [], hoverinfo: [] };
    for (const trace of data) {
      const { role, curve } = trace.meta, faint = weight > 0 && smoothed.has(curve);
      const on = !hidden[i].has(curve);
      const source = role === 'smooth' && faint ? line(curve) : trace;
      values.x.push(source.x);
      values.y.push(role === 'smooth' && faint ? smooth(source.y, weight) : trace.y);
      values.visible.push(on && (role !== 'smooth' || faint));
      values.opacity.push(role === 'line' && faint ? 0.3 : 1);
      values.hoverinfo.push(role === 'band' || (role === 'line' && faint) ? 'skip' : 'all');
    }
    await Plotly.restyle(plot, values);
  };
  for (const [i, plot] of plots.entries()) {
    await Plotly.newPlot(plot, figures[i].data, figures[i].layout, config);
    await Plotly.relayout(plot, { ...colours(), ...scale(figures[i]) });
  }
  slider.addEventListener('input', () => {
    document.getElementById('weight').textContent = slider.value;
    plots.forEach(show);
  });
  log.addEventListener('change', () => {
    plots.forEach((plot, i) => Plotly.relayout(plot, scale(figures[i])));
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
    plots.forEach((plot) => Plotly.relayout(plot, colours()));
  });
  for (const [i, plot] of plots.entries()) {
    for (const button of plot.parentElement.querySelectorAll('.legend button')) {
      button.addEventListener('click', () => {
        const curve = button.dataset.curve;
        if (!hidden[i].delete(curve)) hidden[i].add(curve);
        button.classList.toggle('off', hidden[i].has(curve));
        show(plot, i);
      });
    }
  }
  document.documentElement.dataset.drawn = 'yes';
})();
