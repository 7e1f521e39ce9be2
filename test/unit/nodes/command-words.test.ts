import { describe, expect, it } from "vitest";
import { commandsDiffer, sharedWords } from "../../../src/nodes/command-words.js";

const compared = (...commands: string[][]): string | null =>
  commandsDiffer(commands.map((command, node) => ({ host: `h${node}`, command: sharedWords(command) })));

const torchrun = (rank: number, ...rest: string[]): string[] => [
  ...["torchrun", "--nnodes", "2", "--node-rank", `${rank}`, `--master_addr=gpu${rank}`, "train.py", ...rest],
];

describe("the commands of the nodes", () => {
  it("may differ in the words that say which node it is, however they are spelled", () => {
    expect(sharedWords(torchrun(1))).toEqual(["torchrun", "--nnodes", "2", "train.py"]);
    expect(compared(torchrun(0), torchrun(1))).toBeNull();
    const accelerate = (rank: number): string[] => ["accelerate", "launch", "--machine_rank", `${rank}`, "t.py"];
    expect(compared(accelerate(0), accelerate(1))).toBeNull();
    const shell = (rank: number): string[] => ["bash", "-c", `torchrun --node_rank ${rank} --rdzv-conf=a=${rank} t.py`];
    expect(compared(shell(0), shell(1))).toBeNull();
  });

  it("are told apart by the first other word", () => {
    expect(compared(torchrun(0), torchrun(1, "--lr", "1"))).toBe(
      "the nodes' commands differ: after `train.py` nothing on node 0 (h0), `--lr` on node 1 (h1); the run goes on",
    );
    expect(compared(torchrun(0), torchrun(1), torchrun(2, "x"))).toContain("`x` on node 2 (h2)");
    expect(compared(["a"], ["b"])).toContain("differ: `a` on node 0 (h0), `b` on node 1");
    // A script's own words that only look like them.
    expect(compared(["t.py", "--my-node-rank", "0"], ["t.py", "--my-node-rank", "1"])).not.toBeNull();
    expect(compared(["bash", "-c", "t.py --lr 1"], ["bash", "-c", "t.py --lr 2"])).not.toBeNull();
  });
});
