import { describe, expect, it } from "vitest";
import { bars, Progress, shortBytes, shortSeconds } from "../../src/report/progress.js";
import { smallRun } from "./report-events.fixture.js";

function shown(isTTY: boolean): string {
  let text = "";
  const screen = {
    isTTY,
    columns: 40,
    write: (more: string) => {
      text += more;
    },
  };
  const progress = new Progress(screen, isTTY);
  for (const event of smallRun()) {
    progress.show(event);
    progress.tick(event.monotonicMs + 1);
  }
  return text;
}

describe("progress", () => {
  it("is one plain line a step without a terminal", () => {
    const text = shown(false);
    expect(text).not.toContain("\u001b");
    expect(text).not.toContain("\r");
    const lines = text.trimEnd().split("\n");
    expect(lines).toEqual([
      "baton    2 stand-in GPUs (simulated) of 256 MiB, 2 training ranks, 1 engine with TP=2",
      "model    500,000 float32 parameters in 26 tensors, ZeRO-3, training state 8.0 MiB a rank",
      "engines  ready after 0.01 s, 2.0 MiB of weights and 4.0 MiB of cache a GPU",
      "step   0  reward 0.250  held-out 0.300  start 0.50 train 0.10 arrive 0.01 s  GPU memory train ▃▃",
      "step   1  reward 0.500  held-out 0.600  release 0.01 generate 0.04 sleep 0.01 resume 0.01 " +
        "train 0.20 arrive 0.01 s  GPU memory train ▃▃ generate ▄▂",
    ]);
  });

  it("rewrites one line on a terminal and leaves none of it behind", () => {
    const text = shown(true);
    expect(text).toContain("\u001b[");
    expect(text).toContain("generate");
    expect(text.endsWith("\r\u001b[K")).toBe(true);
  });

  it("fits the live line into the terminal", () => {
    const texts = shown(true).split("\r");
    for (const part of texts) {
      // biome-ignore lint/suspicious/noControlCharactersInRegex: the codes are what is taken out
      const visible = part.split("\n")[0]?.replace(/\u001b\[[\d;]*[mK]/g, "") ?? "";
      if (visible.startsWith("  ")) expect(visible.length).toBeLessThan(40);
    }
  });
});

describe("figures for people", () => {
  it("bars", () => {
    expect(bars([0, 0.001, 0.5, 1, 2])).toBe(" ▁▄██");
  });
  it("seconds", () => {
    expect([4, 990, 1000, 9_949, 12_300, 99_400, 99_500, 125_000].map(shortSeconds)).toEqual([
      "0.00",
      "0.99",
      "1.0",
      "9.9",
      "12",
      "99",
      "1m40",
      "2m05",
    ]);
  });
  it("bytes", () => {
    expect([0, 1023, 1024, 1.5 * 2 ** 20, 10 * 2 ** 20, 1023.9 * 2 ** 20].map(shortBytes)).toEqual([
      "0 B",
      "1023 B",
      "1.0 KiB",
      "1.5 MiB",
      "10 MiB",
      "1.0 GiB",
    ]);
  });
});
