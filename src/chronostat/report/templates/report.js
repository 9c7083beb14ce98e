(function () {
  "use strict";
  var scheme = window.matchMedia("(prefers-color-scheme: dark)");
  var coarse = window.matchMedia("(pointer: coarse)").matches;
  var plots = Array.prototype.slice.call(document.querySelectorAll("div.plot"));

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function dress(layout) {
    layout.font = { color: colour("--text"), size: 13 };
    layout.hoverlabel = Object.assign({}, layout.hoverlabel, {
      bgcolor: colour("--panel"), font: { color: colour("--text") }
    });
    Object.keys(layout).forEach(function (key) {
      if (/^[xy]axis/.test(key)) {
        Object.assign(layout[key], {
          gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line")
        });
      }
    });
    if (coarse) {
      layout.dragmode = false; // a finger on a figure scrolls the page
    }
    return layout;
  }

  function draw(div) {
    var data = document.querySelector('script[data-for="' + div.id + '"]').textContent;
    var figure = JSON.parse(data);
    return window.Plotly.react(div, figure.data, dress(figure.layout), {
      responsive: true, displaylogo: false,
      displayModeBar: coarse ? false : "hover" // without a mouse the bar would always cover the legend
    });
  }

  function drawAll() {
    return Promise.all(plots.map(draw)).then(function () {
      document.documentElement.dataset.drawn = String(plots.length);
    });
  }

  scheme.addEventListener("change", drawAll);
  drawAll();
})();
