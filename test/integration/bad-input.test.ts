/** What a user can get wrong: one clear error each, an exit code that is not 0, nothing left. */
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { Baton, type Ended, fixtures, processesWith, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { type LightOptions, lightRun, python } from "./light.js";

function codes({ output }: Ended): string[] {
  return [...output.matchAll(/^([A-Z][A-Z0-9_]{3,}): /gm)].map((match) => match[1] as string);
}

/** A light run that must fail with this error; with the phases that it came to. */
async function refused(code: string, options: LightOptions): Promise<Ended & { readonly phases: string[] }> {
  return withFolder((folder) => refusedIn(folder, code, options));
}

async function refusedIn(
  folder: string,
  code: string,
  options: LightOptions,
): Promise<Ended & { readonly phases: string[] }> {
  const baton = lightRun(folder, options);
  const ended = await baton.ended;
  expect(codes(ended), ended.output).toEqual([code]);
  for (const word of ["expected:", "found:", "action:"]) expect(ended.output).toContain(word);
  expect(ended.code).toBe(1);
  expect(baton.summary()).toMatchObject({ exit: { reason: "failed", code: 1 } });
  expect(eventsOf(baton.events(), "exit")[0]?.failure?.code).toBe(code);
  expect(processesWith(folder)).toEqual([]);
  return { ...ended, phases: eventsOf(baton.events(), "phase").map(({ to }) => to) };
}

/** A light run that must be refused before it starts, with the results of the run before still there. */
async function refusedAtOnce(code: string, options: LightOptions): Promise<void> {
  await withFolder(async (folder) => {
    const out = join(folder, "out");
    const before = ["events.jsonl", "logs/launcher.log", "summary.json", "trace.json"];
    mkdirSync(join(out, "logs"), { recursive: true });
    for (const name of before) writeFileSync(join(out, name), "of the run before");
    const ended = await lightRun(folder, options).ended;
    expect(codes(ended), ended.output).toEqual([code]);
    for (const word of ["expected:", "found:", "action:"]) expect(ended.output).toContain(word);
    expect(ended.code).toBe(1);
    for (const name of before) expect(readFileSync(join(out, name), "utf8")).toBe("of the run before");
    expect(readdirSync(out).sort()).toEqual(["events.jsonl", "logs", "summary.json", "trace.json"]);
    expect(processesWith(folder)).toEqual([]);
  });
}

describe("a run is refused", () => {
  it("when the ranks do not divide into the groups of the engines", async () => {
    await refusedAtOnce("RANKS_NOT_DIVISIBLE", { ranks: 3, engines: 2 });
  });

  it("when the engines need more GPUs than there are", async () => {
    await refusedAtOnce("TOO_FEW_GPUS", { engines: 2, words: ["--gpus", "1", "--ranks", "1"] });
  });

  it("when the model's heads do not divide by the tensor parallelism", async () => {
    await refusedAtOnce("HEADS_NOT_DIVISIBLE", { ranks: 3, tensorParallel: 3 });
  });

  it("when the model is not there", async () => {
    await refusedAtOnce("MODEL_NOT_FOUND", { words: ["--model", "/nonexistent"] });
  });

  it("when a GPU is too small for the engine", async () => {
    const ended = await refused("GPU_TOO_SMALL", { words: ["--simulated", "20MiB"], set: ["engine.cacheBytes=30MiB"] });
    expect(ended.output).toMatch(/GPU 0 has no room/);
    expect(ended.output).toMatch(/expected: more than 20\.0 MiB each, with \d+ bytes free/);
    expect(ended.output).toMatch(/GPU 0: 20\.0 MiB of 20\.0 MiB in use; .*processes there: .*engine 0/);
  });

  it("when a GPU is a little too small, before anything is generated, with who holds what", async () => {
    // 18 MiB of training and 4 MiB that a worker keeps for its tables do not fit; either has room without the other.
    const ended = await refused("ROOM_NOT_AVAILABLE", {
      words: ["--simulated", "22MiB", "--ranks", "1", "--gpus", "1"],
      ranks: 1,
      set: ["deadlines.roomMs=500"],
    });
    expect(ended.output).toMatch(/no room for rank 0 to take its memory back once engine 0 sleeps again/);
    expect(ended.output).toMatch(/GPU 0: .* of 22\.0 MiB in use; held by weights of engine 0 2\.0 MiB/);
    expect(ended.output).toMatch(/processes there: .*rank 0 \(\d+\) .*worker 0 of engine 0 \(\d+\)/);
    expect(ended.phases).toContain("cache");
    expect(ended.phases).not.toContain("generate");
  });

  // The engine's cache, a table of its worker, and the moments of the optimizer do not fit.
  it.each(ALL ? ["1MiB", "4MiB", "6MiB", "8MiB"] : ["1MiB", "6MiB"])(
    "when stand-in GPUs have %s, with what to do",
    async (size) => {
      await withFolder(async (folder) => {
        const words = ["--ranks", "1", "--engines", "1", "--tp", "1", "--steps", "1", "--gpu-memory", size];
        const ended = await new Baton(folder, ["demo", ...words, "--out", join(folder, "out")], {
          BATON_PYTHON: python,
        }).ended;
        expect(codes(ended), ended.output).toEqual([size === "1MiB" ? "SIMULATED_GPU_INVALID" : "GPU_TOO_SMALL"]);
        expect(ended.output).toMatch(/action: .*gpus\.simulated\.memoryBytes.*--gpu-memory/);
        expect(ended.code).toBe(1);
      });
    },
  );

  it("when a worker finds no room for its tables, with who holds what", async () => {
    const environment = { BATON_STANDIN_FAULTS: "cuMemAlloc:after=1:result=2:role=engine" };
    const ended = await refused("CUDA_OUT_OF_MEMORY", { environment });
    expect(ended.output).toMatch(/expected: \d+ bytes free on GPU \d/);
    expect(ended.output).toMatch(/found: .*bytes free; GPU \d: .*held by .*training of rank \d/);
  });

  it("when a GPU is too small for a training state whose moments do not exist yet", async () => {
    const ended = await refused("GPU_TOO_SMALL", { environment: { LIGHT_MORE_STATE_BYTES: String(100 * 2 ** 20) } });
    expect(ended.output).toMatch(/GPU 0 is too small for the training state/);
  });

  it("when a GPU is too small for what a script puts there before it has joined", async () => {
    const launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"];
    const ended = await refused("GPU_TOO_SMALL", { command: [...launcher, join(fixtures, "greedy_rank.py")] });
    expect(ended.output).toMatch(/GPU [01] has no room/);
  });

  it("when the path of the socket is too long", async () => {
    await withFolder(async (folder) => {
      const long = join(folder, "x".repeat(90));
      mkdirSync(long);
      await refusedAtOnce("SOCKET_PATH_TOO_LONG", { environment: { XDG_RUNTIME_DIR: long } });
    });
  });

  it("when there is no folder for the socket", async () => {
    await refusedAtOnce("SOCKET_FOLDER_UNUSABLE", { environment: { XDG_RUNTIME_DIR: "", TMPDIR: "/nonexistent" } });
  });

  it("in a folder that another run uses, which goes on", async () => {
    await withFolder(async (folder) => {
      const first = lightRun(folder, { steps: 2 });
      await first.event((event) => event.type === "started");
      const second = lightRun(folder);
      const ended = await second.ended;
      expect(codes(ended)).toEqual(["RUN_FOLDER_IN_USE"]);
      expect(ended.output).toContain(`process ${first.pid}`);
      expect(ended.code).toBe(1);
      expect(await first.ended).toMatchObject({ code: 0 });
      expect(first.summary().batches).toBe(2);
    });
  });

  it("when its folder cannot be made", async () => {
    await withFolder(async (folder) => {
      const ended = await lightRun(folder, { words: ["--out", "/proc/x"] }).ended;
      expect(codes(ended)).toEqual(["RUN_FOLDER_UNUSABLE"]);
      for (const word of ["expected:", "found:", "action:"]) expect(ended.output).toContain(word);
      expect(ended.code).toBe(1);
    });
  });

  it("with an unknown key, naming the nearest right one", async () => {
    await withFolder(async (folder) => {
      const ended = await lightRun(folder, { set: ["engine.engins=2"] }).ended;
      expect(codes(ended)).toEqual(["RECIPE_UNKNOWN_KEY"]);
      expect(ended.output).toContain("engines");
      expect(ended.code).toBe(1);
      expect(existsSync(join(folder, "out"))).toBe(false);
    });
  });

  it("when a Python package is missing, naming it and `baton setup`", async () => {
    await withFolder(async (folder) => {
      // A Python with nothing but its standard library.
      const bare = join(folder, "python3");
      symlinkSync("/usr/bin/env", join(folder, "env"));
      writeFileSync(bare, `#!/bin/sh\nexec ${python} -S -I "$@"\n`, { mode: 0o755 });
      const ended = await new Baton(
        folder,
        [
          "run",
          "--model",
          join(fixtures, "light_model"),
          "--simulated",
          "64MiB",
          "--set",
          "engine.maxModelLength=32",
          "--out",
          join(folder, "out"),
          "--",
          bare,
          "x.py",
        ],
        { BATON_PYTHON: bare },
      ).ended;
      expect(codes(ended)).toEqual(["PYTHON_PACKAGE_MISSING"]);
      expect(ended.output).toContain("msgspec");
      expect(ended.output).toContain("baton setup");
      expect(ended.code).toBe(1);
    });
  });

  it("by its recipe before Python is looked for", async () => {
    await withFolder(async (folder) => {
      const bare = join(folder, "python3");
      writeFileSync(bare, `#!/bin/sh\nexec ${python} -S -I "$@"\n`, { mode: 0o755 });
      await refusedAtOnce("MODEL_NOT_FOUND", { words: ["--model", "/nonexistent"], command: [bare, "x.py"] });
    });
  });

  it("when Python is too new, at once", async () => {
    await withFolder(async (folder) => {
      writeFileSync(join(folder, "sitecustomize.py"), 'import sys\nsys.version_info = (3, 14, 0, "final", 0)\n');
      const newer = join(folder, "python3");
      writeFileSync(newer, `#!/bin/sh\nPYTHONPATH=${folder} exec ${python} "$@"\n`, { mode: 0o755 });
      const words = ["run", "--model", join(fixtures, "light_model"), "--simulated", "64MiB"];
      const command = ["--set", "engine.maxModelLength=32", "--", newer, "x.py"];
      const ended = await new Baton(folder, [...words, ...command], { BATON_PYTHON: "" }).ended;
      expect(codes(ended)).toEqual(["PYTHON_UNSUPPORTED"]);
      expect(ended.output).toContain("Python 3.10 to 3.13");
      expect(ended.output).toContain(`${newer} is Python 3.14`);
      expect(ended.code).toBe(1);
    });
  });

  it("when there is no GPU and no word of how many", async () => {
    await withFolder(async (folder) => {
      const words = [
        "run",
        "--model",
        join(fixtures, "light_model"),
        "--out",
        join(folder, "out"),
        "--",
        python,
        "x.py",
      ];
      // Also on a machine that has some.
      const environment = { BATON_PYTHON: python, BATON_NVML_LIBRARY: "/nonexistent" };
      const ended = await new Baton(folder, words, environment).ended;
      expect(codes(ended)).toEqual(["GPUS_NOT_FOUND"]);
      for (const option of ["--gpus N", "--simulated"]) expect(ended.output).toContain(option);
      expect(existsSync(join(folder, "out"))).toBe(false);
    });
  });

  it("when the command is not there", async () => {
    await withFolder(async (folder) => {
      const words = ["run", "--model", join(fixtures, "light_model"), "--gpus", "1", "--out", join(folder, "out")];
      words.push("--set", "engine.maxModelLength=32");
      const none = await new Baton(folder, words, { BATON_PYTHON: python }).ended;
      expect(codes(none)).toEqual(["COMMAND_MISSING"]);
      const unknown = await new Baton(folder, [...words, "--", "no-such-launcher"], { BATON_PYTHON: python }).ended;
      expect(codes(unknown)).toEqual(["COMMAND_NOT_FOUND"]);
      expect(unknown.code).toBe(1);
    });
  });
});

describe("a command that fails", () => {
  it("gives the run its exit code", async () => {
    await withFolder(async (folder) => {
      const baton = lightRun(folder, { environment: { LIGHT_MODEL: "/nonexistent" } });
      const ended = await baton.ended;
      expect(codes(ended)).toEqual(["LAUNCHER_FAILED"]);
      expect(ended.output).toContain("MODEL_CONFIG_MISSING");
      expect(ended.code).toBe(1);
    });
  });
});

describe("Ctrl-C", () => {
  it("ends everything in order, with exit code 130", async () => {
    await withFolder(async (folder) => {
      const baton = lightRun(folder, { steps: 100, pauseSeconds: 0.05 });
      await baton.event((event) => event.type === "phase" && event.to === "generate");
      const began = performance.now();
      baton.process.kill("SIGINT");
      const ended = await baton.ended;
      expect(performance.now() - began).toBeLessThan(3_000);
      expect(ended.code).toBe(130);
      expect(codes(ended)).toEqual(["INTERRUPTED"]);
      expect(baton.summary()).toMatchObject({
        left: { processes: 0, deviceBytes: 0 },
        exit: { reason: "interrupted", code: 130 },
      });
      expect(processesWith(folder)).toEqual([]);
    });
  });
});
