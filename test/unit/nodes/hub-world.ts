/** Drives a hub by hand: what it said to whom, and which of its timers run. */

import { type HubEvent, type HubState, type HubTimer, hubTransition, newHub } from "../../../src/nodes/hub.js";
import type { FromHub } from "../../../src/nodes/messages.js";
import type { Failure } from "../../../src/protocol/messages.js";

export const failure = (code: string, found = "it"): Failure => ({
  code,
  message: `${code} happened`,
  expected: "that it does not",
  found,
  action: "look",
});

export const DIED = failure("RANK_DIED", "killed by SIGKILL");
export const EXCEPTION = failure("UNEXPECTED_ERROR", "RuntimeError");

export class HubWorld {
  state: HubState;
  readonly timers = new Map<HubTimer, number>();
  readonly said: { readonly node: number; readonly message: FromHub }[] = [];

  constructor(count = 3) {
    this.state = newHub({ count, run: "a run", meetMs: 1_000, finishMs: 5_000 });
    this.feed({ type: "started" });
  }

  /** @returns what the hub says to it */
  feed(event: HubEvent): { readonly node: number; readonly message: FromHub }[] {
    const { state, commands } = hubTransition(this.state, event);
    this.state = state;
    const before = this.said.length;
    for (const command of commands) {
      if (command.type === "send") this.said.push(command);
      if (command.type === "setTimer") this.timers.set(command.timer, command.ms);
      if (command.type === "clearTimer") this.timers.delete(command.timer);
    }
    return this.said.slice(before);
  }

  /** A timer fires, if it runs. */
  fire(timer: HubTimer): void {
    if (this.timers.delete(timer)) this.feed({ type: "timeUp", timer });
  }

  /** A host has one controller. */
  join(node: number, host: string): void {
    this.feed({ type: "joined", node, host, instance: host });
  }

  meet(facts: (node: number) => Record<string, string> = () => ({ baton: "1" })): this {
    for (let node = 0; node < this.state.config.count; node++) {
      this.join(node, `host${node}`);
      this.feed({ type: "identity", node, facts: facts(node), command: [] });
    }
    return this;
  }

  /** What this node was told last of this kind. */
  told<T extends FromHub["type"]>(node: number, type: T): Extract<FromHub, { type: T }> | undefined {
    const found = this.said.filter((one) => one.node === node && one.message.type === type).at(-1);
    return found?.message as Extract<FromHub, { type: T }> | undefined;
  }
}
