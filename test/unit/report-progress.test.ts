import { describe, expect, it } from "vitest";
import { bars, shortBytes, shortSeconds } from "../../src/report/figures.js";
import { nodePhases, Progress } from "../../src/report/progress.js";
import { smallRun } from "./report-events.fixture.js";

function shown(isTTY: boolean, columns = 40): string {
  let text = "";
  const screen = {
    isTTY,
    columns,
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

/** Without colours. */
function plain(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the codes are what is taken out
  return text.replace(/\u001b\[[\d;]*[mK]/g, "");
}

describe("progress", () => {
  it("is one plain line a batch without a terminal", () => {
    const text = shown(false);
    expect(text).not.toContain("\u001b");
    expect(text).not.toContain("\r");
    const lines = text.trimEnd().split("\n");
    expect(lines).toEqual([
      "baton    2 stand-in GPUs (simulated) of 256 MiB, 2 training ranks, 1 engine with TP=2",
      "model    500,000 float32 parameters in 26 tensors, ZeRO-3, training state 8.0 MiB a rank",
      "engines  ready after 0.01 s, 2.0 MiB of weights and 4.0 MiB of cache a GPU",
      "batch   0  reward 0.250  held-out 0.300  start 0.50 train 0.10 handoff 0.01 s  training █▇ 100 MiB",
      "batch   1  reward 0.500  held-out 0.600  generate 0.04 train 0.20 handoff 0.03 s  training ▆▆ 97 MiB  engine ▁▁ 6.0 MiB",
    ]);
  });

  it("shows both sides of the GPUs while they change hands, as far as there is room", () => {
    const lines = (columns: number): string[] => plain(shown(true, columns)).split(/[\r\n]+/);
    // What each GPU has, and the most that one has.
    expect(lines(80)).toContain("  generate 0.04 s  training ▄▄ 64 MiB  engine ▁▁ 6.0 MiB");
    expect(lines(40)).toContain("  generate 0.04 s  64/6.0 MiB");
    const step = "batch   1  reward 0.500  held-out 0.600  generate 0.04 train 0.20 handoff 0.03 s";
    expect(lines(120)).toContain(`${step}  training ▆▆ 97 MiB  engine ▁▁ 6.0 MiB`);
    expect(lines(100)).toContain(`${step}  97/6.0 MiB`);
    expect(lines(80)).toContain(step);
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
      const visible = plain(part.split("\n")[0] ?? "");
      if (visible.startsWith("  ")) expect(visible.length).toBeLessThan(40);
    }
  });
});

describe("figures for people", () => {
  it("bars", () => {
    expect(bars([0, 0.001, 0.5, 1, 2])).toBe("·▁▄██");
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

describe("the phases of several nodes", () => {
  it("are said once for neighbours that do the same", () => {
    expect(nodePhases(["generate", "generate", "generate", "sleep", null])).toBe("nodes 0-2 generate, 3 sleep, 4 ?");
  });
});
