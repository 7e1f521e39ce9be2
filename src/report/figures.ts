/** Figures as people read them at a glance. */

const BARS = [..."·▁▂▃▄▅▆▇█"];

/**
 * Shares from 0 to 1 as one block character each. A share that is not nothing shows at least the lowest block, one
 * that is nothing a dot.
 */
export function bars(shares: readonly number[]): string {
  return shares
    .map((share) => {
      const level = Math.round(Math.min(1, Math.max(0, share)) * (BARS.length - 1));
      return BARS[share > 0 ? Math.max(1, level) : 0] ?? "·";
    })
    .join("");
}

/** Seconds in as many digits as a person reads: "0.04", "1.2", "37", "2m05". */
export function shortSeconds(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 0.995) {
    return seconds.toFixed(2);
  }
  if (seconds < 99.5) {
    return seconds < 9.95 ? seconds.toFixed(1) : seconds.toFixed(0);
  }
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}m${String(whole % 60).padStart(2, "0")}`;
}

/** Bytes with a binary unit: "640 KiB", "1.5 MiB", "12 GiB". */
export function shortBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 9.95 && unit > 0 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}
