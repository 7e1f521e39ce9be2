/**
 * What the native addon gives Node: sockets that carry file descriptors, process handles that survive pid reuse,
 * memory files, and NVML. This file declares every native member; src/locate.ts finds the files.
 *
 * Unless a member says otherwise a call returns within microseconds and throws a {@link BatonError} with a `code`.
 * A system call that failed has code `SYSTEM_<NAME>`, for example `SYSTEM_EMFILE`. Sizes are bytes; a value that is
 * not known is null, never 0. Everything still open is closed when its environment (process or worker) ends.
 */
import { loadAddon } from "./locate.js";

export { guardPath, libbatonPath, probePath, pythonPath, standinFolder } from "./locate.js";

/** Who is at the other end of a channel, as the kernel recorded it at connect (SO_PEERCRED). */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

export interface ChannelOptions {
  /** A header that announces more is fatal to the channel. Default 1 GiB. */
  readonly maxPayloadBytes?: number;
  /** `send` throws `CHANNEL_FULL` when more than this would wait for the peer. Default 1 GiB. */
  readonly maxQueuedBytes?: number;
}

/**
 * One connection of frames: an 8-byte header (u32 payload length, u8 version, u8 descriptor count, u16 zero; little
 * endian), the payload, and descriptors that travel with the first byte. It owns its socket; nothing else may read it.
 *
 * The channel ends by itself, with an error, on a bad header, a length over the limit, and descriptors that were
 * truncated, missing or left over (`FRAME_*`), and on a connection that breaks (`CONNECTION_LOST`).
 */
export interface Channel {
  readonly peer: Peer;
  /** Called once per complete frame, in order. The receiver owns the descriptors (close-on-exec) and closes them. */
  onFrame: ((payload: Buffer, descriptors: number[]) => void) | null;
  /** Called once, after the last frame, unless this side closed. null: the peer closed between two frames. */
  onClose: ((error: Error | null) => void) | null;
  /** Called when everything queued has been given to the kernel. */
  onDrain: (() => void) | null;
  /**
   * Queues a whole frame. What the kernel does not take at once is copied, and descriptors are duplicated, before
   * this returns: the caller may reuse the payload and close its descriptors.
   *
   * A payload given as an array is sent as if its pieces (32 at most) were one. Those of 64 KiB and more are not
   * copied but held until the kernel has them: they must not be changed or transferred any more.
   *
   * @throws BatonError CHANNEL_CLOSED after `close` or the end of the connection, CHANNEL_FULL over
   * `maxQueuedBytes`, FRAME_DESCRIPTORS for more than 253 descriptors or one that is not open, FRAME_PIECES,
   * FRAME_TOO_LARGE
   */
  send(payload: Uint8Array | readonly Uint8Array[], descriptors?: readonly number[]): void;
  /** Bytes that wait for the peer to read. */
  readonly queuedBytes: number;
  readonly closed: boolean;
  /** Stops reading, gives the kernel what it takes of the queue within `flushMs` (default 1000), then closes. */
  close(flushMs?: number): void;
}

export interface Listener {
  readonly path: string;
  /** Closes the socket and removes its file. Channels stay open. */
  close(): void;
  /** Does not keep the event loop alive by itself. */
  unref(): void;
}

/** A process, immune to reuse of its id. */
export interface Pidfd {
  readonly pid: number;
  /** Field 22 of /proc/pid/stat: clock ticks since boot. pid and start time together name a process. */
  readonly startTime: bigint;
  /** Called once, when the process has ended (also when it had before this was set). */
  onExit: (() => void) | null;
  /** Sends a signal by number (0: only asks). False when the process has ended. */
  signal(signal: number): boolean;
  close(): void;
  /** Does not keep the event loop alive by itself. */
  unref(): void;
}

export interface ProcessInfo {
  readonly pid: number;
  readonly ppid: number;
  /** As in /proc/pid/stat: R, S, D, T (stopped), t (traced), Z (zombie), X. */
  readonly state: string;
  /** It has been killed or has exited, and the kernel is still taking it apart: memory pinned for a GPU takes time. */
  readonly ending: boolean;
  readonly startTime: bigint;
  /** The command line, or the name in brackets of a process without one. */
  readonly command: string;
}

export interface DeviceMemory {
  readonly totalBytes: number;
  readonly usedBytes: number;
  readonly freeBytes: number;
  /** Held by the driver itself; null when it does not tell. */
  readonly reservedBytes: number | null;
}

export interface ProcessMemory {
  readonly pid: number;
  /** null when NVML cannot tell (containers, MIG). Stale while VMM memory is unmapped: device totals decide. */
  readonly usedBytes: number | null;
}

export interface Nvml {
  /** True for this repository's stand-in. */
  readonly simulated: boolean;
  /** The library that was opened. */
  readonly path: string;
  readonly driverVersion: string;
  readonly deviceCount: number;
  /** About 6 µs on a real GPU. Index in NVML's order. */
  memory(index: number): DeviceMemory;
  /** Processes with a context on the device; asked off the event loop. */
  processes(index: number): Promise<ProcessMemory[]>;
  uuid(index: number): string;
  name(index: number): string;
  close(): void;
}

export interface SamplerOptions {
  /** Default: libnvidia-ml.so.1 of the loader. */
  readonly libraryPath?: string;
  /** Memory totals a second, 1 to 1000. */
  readonly hz: number;
  /** Process lists a second, 0 (none) to 100. Default 2. */
  readonly processHz?: number;
  /** Samples kept until `drain`; the oldest are dropped and counted. Default 65536. */
  readonly capacity?: number;
}

/** What the sampler saw last. */
export interface SamplerSnapshot {
  /** CLOCK_MONOTONIC. */
  readonly timeNs: bigint;
  /** One per device; null when the driver did not answer. */
  readonly devices: readonly (DeviceMemory | null)[];
  /** One list per device; null before the first one, when `processHz` is 0 or the driver did not answer. */
  readonly processes: readonly (readonly ProcessMemory[] | null)[];
}

export interface SampleSeries {
  /** CLOCK_MONOTONIC of each sample. */
  readonly timesNs: BigUint64Array;
  /** usedBytes[sample * deviceCount + device]; NaN when the driver did not answer. */
  readonly usedBytes: Float64Array;
  readonly deviceCount: number;
  /** Samples that were overwritten before they were drained. */
  readonly dropped: number;
}

export interface DevicePeak {
  readonly usedBytes: number;
  readonly timeNs: bigint;
}

/** What sampling costs, to be shown beside its figures. */
export interface SamplerCost {
  readonly samples: number;
  /** Ticks that were skipped because the sampler was late. */
  readonly late: number;
  /** CPU time of the sampler's thread. */
  readonly cpuNs: bigint;
  readonly wallNs: bigint;
}

/** A native thread that reads NVML at a steady rate, whatever JavaScript is doing. */
export interface Sampler {
  readonly simulated: boolean;
  readonly deviceCount: number;
  latest(): SamplerSnapshot;
  /** The highest use of each device since the start or the last `resetPeaks`; null: never answered. */
  peaks(): readonly (DevicePeak | null)[];
  resetPeaks(): void;
  /** The samples since the last drain, oldest first. */
  drain(): SampleSeries;
  cost(): SamplerCost;
  stop(): void;
}

/** The addon itself. @internal */
export interface Addon {
  readonly version: string;
  initialize(errorClass: unknown): void;
  listen(path: string, onConnection: (channel: Channel) => void, options?: ChannelOptions): Listener;
  connect(path: string, options?: ChannelOptions): Channel;
  openPidfd(pid: number): Pidfd;
  becomeSubreaper(): void;
  processInfo(pid: number): ProcessInfo | null;
  descendants(pid: number): ProcessInfo[];
  reap(pid: number): number | null;
  memfd(name: string, bytes: number): number;
  closeDescriptor(descriptor: number): void;
  duplicate(descriptor: number): number;
  openNvml(libraryPath?: string): Promise<Nvml>;
  startSampler(options: SamplerOptions): Promise<Sampler>;
  indexChecksums(counts: BigUint64Array): Promise<BigUint64Array>;
  monotonicNs(): bigint;
}

/** The version that the loaded addon was built with. */
export const addonVersion = (): string => loadAddon().version;

/**
 * Listens on a Unix socket of mode 0600. Processes of other users are turned away before `onConnection`.
 *
 * @param onConnection must set `onFrame` before it returns, or frames may be lost
 * @throws BatonError SOCKET_PATH_TOO_LONG (107 bytes at most), SOCKET_IN_USE, SYSTEM_*
 */
export const listen = (
  path: string,
  onConnection: (channel: Channel) => void,
  options: ChannelOptions = {},
): Listener => loadAddon().listen(path, onConnection, options);

/** @throws BatonError CONNECT_FAILED, SOCKET_PATH_TOO_LONG, PEER_NOT_ALLOWED when another user listens there */
export const connect = (path: string, options: ChannelOptions = {}): Channel => loadAddon().connect(path, options);

/** @throws BatonError PROCESS_NOT_FOUND when there is no such process (a zombie still is one) */
export const openPidfd = (pid: number): Pidfd => loadAddon().openPidfd(pid);

/** Descendants that lose their parent become children of this process, not of init. */
export const becomeSubreaper = (): void => loadAddon().becomeSubreaper();

/** null when there is no such process. */
export const processInfo = (pid: number): ProcessInfo | null => loadAddon().processInfo(pid);

/** Every living or zombie process below `pid`, itself not included, parents before children. */
export const descendants = (pid: number): ProcessInfo[] => loadAddon().descendants(pid);

/**
 * Takes the exit status of an adopted child without waiting: the exit code, 128 + the number of the signal that
 * killed it, or null while it runs and when it is no child. Never for children that Node itself started: Node would
 * not learn of their end.
 */
export const reap = (pid: number): number | null => loadAddon().reap(pid);

/** An anonymous memory file of that size, close-on-exec. No page is touched. The caller closes it. */
export const memfd = (name: string, bytes: number): number => loadAddon().memfd(name, bytes);

/** @throws BatonError SYSTEM_EBADF when it is not open: closing twice is a bug */
export const closeDescriptor = (descriptor: number): void => loadAddon().closeDescriptor(descriptor);

/** A second descriptor of the same file, close-on-exec. */
export const duplicate = (descriptor: number): number => loadAddon().duplicate(descriptor);

/**
 * Opens NVML, off the event loop: a real driver may take some 100 ms to wake up.
 *
 * @throws BatonError DRIVER_NOT_FOUND, DRIVER_SYMBOL_MISSING, DRIVER_INIT_FAILED
 */
export const openNvml = async (libraryPath?: string): Promise<Nvml> => loadAddon().openNvml(libraryPath);

/**
 * Opens NVML of its own and samples in a thread; there is a first sample when the promise is fulfilled.
 *
 * @throws as openNvml, and BatonError BAD_ARGUMENT for a rate out of range
 */
export const startSampler = async (options: SamplerOptions): Promise<Sampler> => loadAddon().startSampler(options);

/**
 * The checksum of weights over indices only, for tensors of these many elements: the sum over i of
 * the place's factor (native/copy/checksum.h) modulo 2^64. Off the event loop, about a nanosecond an element of the
 * largest.
 *
 * @throws BatonError BAD_ARGUMENT
 */
export const indexChecksums = async (counts: BigUint64Array): Promise<BigUint64Array> =>
  loadAddon().indexChecksums(counts);

/** CLOCK_MONOTONIC, the clock of every event, in all processes of the machine. */
export const monotonicNs = (): bigint => loadAddon().monotonicNs();
