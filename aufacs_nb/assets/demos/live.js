// The camera's frames go to the kernel, small and never more than two at a time; meshes and numbers come back.
const SIDE = 640, AHEAD = 2, SECONDS = 20;
const SVG = "http://www.w3.org/2000/svg", WIDTH = 240, HEIGHT = 30; // of a time line, in its own units
const LOST = 2000, SILENT = 8000; // ms without a face, and without an answer, until it is said
const NO_CAMERA = {
  NotAllowedError: "it was not allowed. Allow it beside the page's address, then start again",
  NotFoundError: "none was found. Connect one, then start again",
  NotReadableError: "another program or tab has it. Close that one, then start again",
};

const make = (tag, attributes = {}, parent = null) => {
  const e = Object.assign(document.createElement(tag), attributes);
  if (parent) parent.append(e);
  return e;
};

function buttons(panel, actions) {
  const made = {};
  for (const [name, [text, action]] of Object.entries(actions)) {
    made[name] = make("button", { type: "button", textContent: text, className: "live-button", onclick: action }, panel);
  }
  return made;
}

function rowsOf(board, labels) {
  return labels.map(({ name, html }) => {
    const row = make("div", { className: "live-au" }, board);
    make("div", { innerHTML: html }, row);
    const bar = make("div", { className: "live-bar" }, row);
    for (const [key, value] of [["role", "meter"], ["aria-label", name], ["aria-valuemin", 0], ["aria-valuemax", 5],
                                ["aria-valuenow", 0]]) bar.setAttribute(key, value);
    const fill = make("div", { className: "live-fill" }, bar), number = make("span", { textContent: "–" }, row);
    const chart = row.appendChild(document.createElementNS(SVG, "svg"));
    for (const [key, value] of [["class", "live-line"], ["viewBox", `0 0 ${WIDTH} ${HEIGHT}`], ["role", "img"],
                                ["preserveAspectRatio", "none"], ["aria-label", `${name}, last ${SECONDS} seconds`]])
      chart.setAttribute(key, value);
    const line = chart.appendChild(document.createElementNS(SVG, "path"));
    return { bar, fill, number, line };
  });
}

// A path has the page's own colour at every moment; what was drawn on a canvas keeps the colour that it was drawn in.
function drawLine(line, history, k, now) {
  let before = null, path = "";
  for (const { time, values } of history) {
    if (values === null) { before = null; continue; }
    const x = WIDTH * (1 - (now - time) / (1000 * SECONDS)), y = HEIGHT - 2 - (HEIGHT - 4) * ((values[k] ?? 0) / 5);
    path += `${before === null || time - before > 1000 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    before = time;
  }
  line.setAttribute("d", path);
}

function drawMesh(c, points, edges) {
  c.strokeStyle = "rgba(64, 224, 255, .55)";
  c.lineWidth = 1;
  c.beginPath();
  for (let k = 0; k < edges.length; k += 2) {
    c.moveTo(points[2 * edges[k]], points[2 * edges[k] + 1]);
    c.lineTo(points[2 * edges[k + 1]], points[2 * edges[k + 1] + 1]);
  }
  c.stroke();
}

const points = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function download(text, name) {
  const a = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 10000);
}

function render({ model, el }) {
  el.classList.add("aufacs-live");
  const view = make("div", { className: "live-view" }, el), board = make("div", { className: "live-board" }, el);
  const canvas = make("canvas", { width: 640, height: 480, className: "live-picture" }, view);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Your camera, as in a mirror, with the mesh of the face");
  const panel = make("div", { className: "live-panel" }, view), said = make("p", { className: "live-said" }, view);
  said.setAttribute("role", "status");
  const rate = make("p", { className: "live-rate", textContent: "" }, view);
  const noted = make("p", { className: "live-note" }, view);
  noted.setAttribute("role", "status");
  const rows = rowsOf(board, model.get("labels")), edges = model.get("edges");
  const video = make("video", { muted: true, playsInline: true }), shot = make("canvas");
  const sent = new Map(), history = [], answers = [];
  let stream = null, frozen = false, id = 0, lastLines = 0, gone = false, known = false, lastFace = 0, lastAnswer = 0;
  const say = (text, where = said) => { if (where.textContent !== text) where.textContent = text; };

  const b = buttons(panel, {
    start: ["Start the camera", start], freeze: ["Freeze", freeze],
    neutral: ["Hold still: this is my neutral", () => { say("Hold still …"); model.send({ kind: "neutral" }); }],
    forget: ["Forget my neutral", () => { known = false; able(); model.send({ kind: "forget" }); }],
    save: ["Save CSV", () => model.send({ kind: "csv" })],
    clear: ["Clear", () => { history.length = 0; model.send({ kind: "clear" }); lines(); }],
  });
  const able = () => {
    for (const name of ["freeze", "neutral"]) b[name].disabled = !stream;
    b.forget.disabled = !known;
    b.start.textContent = stream ? "Stop the camera" : "Start the camera";
    b.freeze.textContent = frozen ? "Go on" : "Freeze";
  };

  function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    frozen = false;
    sent.clear();
    say("", noted);
    able();
  }

  async function start() {
    if (stream) { stop(); return say("The camera is off. Numbers are kept until you clear them or close the page."); }
    if (!navigator.mediaDevices?.getUserMedia) {
      return say("This browser gives cameras to https pages and to localhost only: open the page at 127.0.0.1.");
    }
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: false,
        video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } } });
    } catch (error) {
      return say(`No camera: ${NO_CAMERA[error.name] ?? error.message}.`);
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      stop();
      say("The camera has gone: it was unplugged, or no longer allowed. Numbers are kept; start it again to go on.");
    });
    lastFace = lastAnswer = performance.now();
    video.srcObject = stream;
    await video.play();
    say("The camera is on. Pictures go to the computer that runs this page, and are not stored.");
    able();
    next();
  }

  function freeze() {
    frozen = !frozen;
    able();
    if (!frozen) { lastFace = lastAnswer = performance.now(); next(); }
  }

  const next = () => video.requestVideoFrameCallback ? video.requestVideoFrameCallback(grab) : setTimeout(grab, 40);

  async function grab() {
    if (!stream || frozen || gone) return;
    next();
    for (const [key, { time }] of sent) if (performance.now() - time > 3000) sent.delete(key);
    if (performance.now() - lastAnswer > SILENT) {
      say("The program does not answer. If that lasts, load the page again.", noted);
    }
    if (sent.size >= AHEAD || !video.videoWidth) return;
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight)), mine = ++id;
    const time = performance.now();
    sent.set(mine, { time, bitmap: null });
    shot.width = Math.round(video.videoWidth * scale);
    shot.height = Math.round(video.videoHeight * scale);
    shot.getContext("2d").drawImage(video, 0, 0, shot.width, shot.height);
    const [bitmap, blob] = await Promise.all([createImageBitmap(shot),
                                              new Promise((done) => shot.toBlob(done, "image/jpeg", 0.85))]);
    if (!sent.has(mine)) return;
    sent.get(mine).bitmap = bitmap;
    const data = await blob.arrayBuffer();
    try {
      model.send({ kind: "frame", id: mine, time: time / 1000 }, undefined, [data]);
    } catch {
      stop();
      say("The connection to the program is lost: load the page again.");
    }
  }

  function lines() {
    const now = performance.now();
    if (now - lastLines < 90 && history.length) return;
    lastLines = now;
    rows.forEach(({ line }, k) => drawLine(line, history, k, now));
  }

  // What a person would else wonder about: no face, several, or a neutral that is not complete.
  function note({ values, faces, left }, now) {
    if (values) lastFace = now;
    if (now - lastFace > LOST) return "No face is seen. Come closer, look at the camera, let light fall on your face.";
    if (faces > 1) return `${faces} faces are seen. Only the one with the mesh is read.`;
    return left && values ? `Hold still … ${left}` : "";
  }

  function seen(message, buffers) {
    const mine = sent.get(message.id), now = performance.now();
    lastAnswer = now;
    for (const key of sent.keys()) if (key <= message.id) sent.delete(key);
    if (known !== message.neutral) { known = message.neutral; able(); }
    if (!mine?.bitmap || !stream) return;
    say(note(message, now), noted);
    const { values } = message, { bitmap, time } = mine;
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    const c = canvas.getContext("2d");
    c.drawImage(bitmap, 0, 0);
    if (values) drawMesh(c, points(buffers[0]), edges);
    history.push({ time, values });
    while (history.length && now - history[0].time > 1000 * SECONDS) history.shift();
    answers.push(now);
    while (answers.length && now - answers[0] > 2000) answers.shift();
    rate.textContent = `${(answers.length / Math.min(2, (now - answers[0]) / 1000 || 2)).toFixed(0)} frames/s, ` +
      `${(now - time).toFixed(0)} ms behind` + (values ? "" : ": no face");
    rows.forEach(({ bar, fill, number }, k) => {
      const value = values ? values[k] : 0;
      fill.style.width = `${20 * value}%`;
      number.textContent = values ? value.toFixed(1) : "–";
      bar.setAttribute("aria-valuenow", value.toFixed(1));
    });
    lines();
  }

  model.on("msg:custom", (message, buffers) => {
    if (message.kind === "seen") seen(message, buffers);
    else if (message.kind === "say") say(message.text);
    else if (message.kind === "csv") download(message.text, "aufacs_live.csv");
  });
  able();
  say("Nothing is sent before you start the camera.");
  lines();
  return () => { gone = true; stop(); };
}
export default { render };
