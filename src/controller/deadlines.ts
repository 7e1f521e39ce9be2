/** Deadlines by key. Node's timers run on the monotonic clock. */
export class Deadlines {
  readonly #timers = new Map<string, NodeJS.Timeout>();
  readonly #passed: (key: string) => void;

  constructor(passed: (key: string) => void) {
    this.#passed = passed;
  }

  /** Replaces a deadline of the same key. */
  set(key: string, ms: number): void {
    this.clear(key);
    const timer = setTimeout(() => {
      // After this turn of the loop: an answer that lies in a socket by now is in time, and a process that was
      // itself stopped finds that out (by another timer) before it blames others.
      setImmediate(() => {
        if (this.#timers.get(key) !== timer) return;
        this.#timers.delete(key);
        this.#passed(key);
      });
    }, ms);
    this.#timers.set(key, timer);
  }

  clear(key: string): void {
    clearTimeout(this.#timers.get(key));
    this.#timers.delete(key);
  }

  clearAll(): void {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
  }
}
