/** The state machine of one node: `(state, event) -> (state, commands)`, with no clock, socket or GPU in it. */
export { type Client, clientName } from "./clients.js";
export type { Command, EndReason, NodePhase, PlainMessage } from "./commands.js";
export { type CheckConfig, type Deadlines, engineGpus, engineOfRank, engineOnGpu, type PhaseConfig } from "./config.js";
export type { Event, FreeMemory, ProcessExit } from "./events.js";
export { initialState, type State } from "./state.js";
export { GRACE_MS, type Transition, transition } from "./transition.js";
export { type Wait, waits } from "./waits.js";
