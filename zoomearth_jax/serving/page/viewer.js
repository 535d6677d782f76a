// The deep-zoom view, its boxes, and drawing a box. Boxes are [x1, y1, x2, y2] in px of the image.

import { headers } from "./api.js";
import { byId, element } from "./dom.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const standIn = document.createElementNS("", "style"); // OpenSeadragon adds a style of its own, which the policy forbids, unless it finds one
standIn.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(standIn);
const LEAST = 4; // px of the screen that a drawn box has at least

export class Viewer {
  #view; #image; #marks = []; #onBox; #onTouched;

  // onBox is called with a box that was drawn, onTouched when somebody moves the view.
  constructor({ onBox, onTouched }) {
    this.#onBox = onBox;
    this.#onTouched = onTouched;
    byId("zoom-in").onclick = () => this.#zoom(2);
    byId("zoom-out").onclick = () => this.#zoom(0.5);
    byId("whole").onclick = () => (onTouched(), this.whole());
    byId("draw").onclick = () => this.draw(byId("draw").getAttribute("aria-pressed") !== "true");
    this.#listen(byId("draw-layer"));
    addEventListener("keydown", (event) => event.key === "Escape" && this.draw(false));
  }

  open(image, name) {
    this.close();
    this.#image = image;
    this.#view = OpenSeadragon({
      element: byId("viewer"),
      drawer: "canvas",
      tileSources: tileSource(image),
      loadTilesWithAjax: true,
      ajaxHeaders: headers(),
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.18,
      navigatorOpacity: 1,
      navigatorDisplayRegionColor: "#1a5fd0",
      maxZoomPixelRatio: 8,
      visibilityRatio: 0.6,
      animationTime: calm.matches ? 0 : 1,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    const canvas = this.#view.canvas;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${name}, view that zooms. Arrow keys move, plus and minus zoom, 0 shows the whole image.`);
    this.#view.addHandler("canvas-key", (event) => {
      if ("rRfF".includes(event.originalEvent.key)) event.preventDefaultAction = true; // boxes stay upright
    });
    for (const name of ["canvas-drag", "canvas-scroll", "canvas-pinch", "canvas-key", "canvas-double-click", "navigator-click"])
      this.#view.addHandler(name, this.#onTouched);
    return new Promise((resolve, reject) => {
      this.#view.addOnceHandler("open", resolve);
      this.#view.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
    });
  }

  close() {
    this.draw(false);
    this.#view?.destroy();
    this.#view = undefined;
    this.#marks = [];
  }

  // Puts a box of a kind (named, window, asked) over the image, with a short label.
  mark(box, kind, label = "") {
    const [x1, y1, x2, y2] = box;
    const made = element("div", { class: `box ${kind}`, "data-box": box.join(",") }, label && element("span", { text: label }));
    const location = this.#view.viewport.imageToViewportRectangle(x1, y1, x2 - x1, y2 - y1);
    this.#view.addOverlay({ element: made, location });
    this.#marks.push([made, kind]);
    this.#explain();
  }

  clear(...kinds) {
    const gone = ([, kind]) => !kinds.length || kinds.includes(kind);
    for (const [made] of this.#marks.filter(gone)) this.#view.removeOverlay(made);
    this.#marks = this.#marks.filter((mark) => !gone(mark));
    this.#explain();
  }

  #explain() {
    byId("legend").hidden = !this.#marks.length;
    for (const line of byId("legend").children) line.hidden = !this.#marks.some(([, kind]) => line.className === kind);
  }

  whole() {
    this.#view?.viewport.goHome(calm.matches);
  }

  // Moves to a box, with as much around it as shows where it lies.
  goTo([x1, y1, x2, y2]) {
    const wide = x2 - x1, high = y2 - y1;
    const bounds = this.#view.viewport.imageToViewportRectangle(x1 - wide / 2, y1 - high / 2, 2 * wide, 2 * high);
    this.#view.viewport.fitBoundsWithConstraints(bounds, calm.matches);
  }

  // The part of the image that can be seen.
  visible() {
    const { viewport } = this.#view;
    const { x, y, width, height } = viewport.viewportToImageRectangle(viewport.getBounds());
    return this.#inside([x, y, x + width, y + height]);
  }

  draw(wanted) {
    const on = wanted && Boolean(this.#view);
    byId("draw").setAttribute("aria-pressed", on);
    byId("draw-layer").hidden = byId("draw-hint").hidden = !on;
    byId("draw-layer").replaceChildren();
  }

  #zoom(by) {
    this.#onTouched();
    this.#view.viewport.zoomBy(by);
    this.#view.viewport.applyConstraints();
  }

  #inside([x1, y1, x2, y2]) {
    const across = (value) => Math.min(Math.max(Math.round(value), 0), this.#image.width);
    const down = (value) => Math.min(Math.max(Math.round(value), 0), this.#image.height);
    return [across(x1), down(y1), across(x2), down(y2)];
  }

  #listen(layer) {
    let start, shape;
    const at = (event) => {
      const area = layer.getBoundingClientRect();
      return [event.clientX - area.left, event.clientY - area.top];
    };
    const corners = (event) => {
      const [x, y] = at(event);
      return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    };
    layer.onpointerdown = (event) => {
      if (event.button) return;
      layer.setPointerCapture(event.pointerId);
      start = at(event);
      layer.replaceChildren((shape = element("div", { class: "box asked" })));
    };
    layer.onpointermove = (event) => {
      if (!start) return;
      const [x1, y1, x2, y2] = corners(event);
      Object.assign(shape.style, { left: `${x1}px`, top: `${y1}px`, width: `${x2 - x1}px`, height: `${y2 - y1}px` });
    };
    layer.onlostpointercapture = () => ((start = undefined), layer.replaceChildren());
    layer.onpointerup = (event) => {
      if (!start) return;
      const [x1, y1, x2, y2] = corners(event);
      start = undefined;
      layer.replaceChildren();
      if (x2 - x1 < LEAST || y2 - y1 < LEAST) return;
      const points = [[x1, y1], [x2, y2]].map(([x, y]) => this.#view.viewport.viewerElementToImageCoordinates(new OpenSeadragon.Point(x, y)));
      const box = this.#inside(points.flatMap(({ x, y }) => [x, y]));
      this.draw(false);
      if (box[0] < box[2] && box[1] < box[3]) this.#onBox(box);
    };
  }
}

// OpenSeadragon counts levels from the smallest, the server from the full resolution.
function tileSource({ id, width, height, tile_px: tileSize, levels }) {
  const finest = Math.ceil(Math.log2(Math.max(width, height)));
  return {
    width, height, tileSize, maxLevel: finest, minLevel: finest - levels + 1,
    getTileUrl: (level, x, y) => `v1/images/${encodeURIComponent(id)}/tiles/${finest - level}/${x}_${y}`,
  };
}
