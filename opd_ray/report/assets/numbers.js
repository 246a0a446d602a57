// Numbers: packed arrays of the record, and how a figure is written.

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function halves(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i], sign = b & 0x8000 ? -1 : 1, exponent = (b >> 10) & 31, part = b & 1023;
    values[i] = exponent === 0 ? sign * part * 2 ** -24
      : exponent === 31 ? (part ? NaN : sign * Infinity)
      : sign * (1 + part / 1024) * 2 ** (exponent - 15);
  }
  return values;
}

// An array that was packed as text; kind as numpy names it.
function unpacked(text, kind) {
  const buffer = bytesOf(text).buffer;
  switch (kind) {
    case "<f4": return new Float32Array(buffer);
    case "<f2": return halves(new Uint16Array(buffer));
    case "<i4": return new Int32Array(buffer);
    case "<i2": return new Int16Array(buffer);
    case "<u4": return new Uint32Array(buffer);
    case "<u2": return new Uint16Array(buffer);
    case "<u1": return new Uint8Array(buffer);
  }
  throw new Error(`no kind of numbers is called ${kind}`);
}

// A figure in few digits; nothing for null.
function short(value, digits = 3) {
  if (value === null || value === undefined) return "";
  if (Number.isNaN(value)) return "no number";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5) return Math.round(value).toLocaleString("en-US");
  if (size >= 100) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-3) return value.toExponential(digits - 2).replace(".0e", "e").replace("e-", "e−");
  return String(Number(value.toPrecision(digits)));
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

// A probability of which small ones matter too.
const chance = (p) => (p >= 0.1 ? percent(p, 0) : p >= 0.001 ? percent(p, 1) : "< 0.1 %");

function duration(seconds) {
  if (seconds < 60) return `${short(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const gigabytes = (bytes) => `${short(bytes / 2 ** 30)} GiB`;
