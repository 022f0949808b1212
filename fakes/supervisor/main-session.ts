// SPDX-License-Identifier: Apache-2.0

/**
 * The main process as those see it who attach to it: what it printed last, what it prints from now on, and its end. One
 * of them at a time may type.
 */

/** How much of the output is kept for whoever attaches later. */
export const KEPT_BYTES = 1024 * 1024;

/** What the main process did. */
export type MainEvent = { stream: "stdout" | "stderr"; data: Uint8Array } | { exit: number };

/** How the main process is reached. */
export interface MainInput {
  write(data: Uint8Array): void;
  /** Without effect on a process that has no terminal. */
  resize(size: { cols: number; rows: number }): void;
  signal(name: NodeJS.Signals): void;
}

export class MainSession {
  #kept: MainEvent[] = [];
  #keptBytes = 0;
  readonly #listeners = new Set<(event: MainEvent) => void>();
  readonly #waiting: (() => void)[] = [];
  #owned = false;
  readonly input: MainInput;

  constructor(input: MainInput) {
    this.input = input;
  }

  publish(event: MainEvent): void {
    this.#kept.push(event);
    this.#keptBytes += bytesIn(event);
    while (this.#keptBytes > KEPT_BYTES) this.#keptBytes -= bytesIn(this.#kept.shift()!);
    for (const listener of this.#listeners) listener(event);
  }

  /** Tells what is kept, then what comes. Returns what ends that. */
  attach(listener: (event: MainEvent) => void): () => void {
    for (const event of this.#kept) listener(event);
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) for (const resolve of this.#waiting.splice(0)) resolve();
    };
  }

  /** Resolves when nobody is attached. */
  async abandoned(): Promise<void> {
    if (this.#listeners.size > 0) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** Returns what gives the input back, or undefined while somebody else has it. */
  takeInput(): (() => void) | undefined {
    if (this.#owned) return undefined;
    this.#owned = true;
    let mine = true;
    return () => {
      if (mine) this.#owned = mine = false;
    };
  }
}

const bytesIn = (event: MainEvent): number => ("data" in event ? event.data.length : 0);

const [CTRL_P, CTRL_Q] = [0x10, 0x11];

/** Finds Ctrl-P Ctrl-Q in what is typed, by which a client detaches; it may come in pieces, and reaches nobody. */
export class DetachKeys {
  #begun = false;

  /** What the process is to get of `data`, and whether the client leaves. */
  read(data: Uint8Array): { forward: Uint8Array; detach: boolean } {
    const forward: number[] = [];
    for (const byte of data) {
      if (this.#begun && byte === CTRL_Q) return { forward: Uint8Array.from(forward), detach: true };
      if (this.#begun) forward.push(CTRL_P);
      this.#begun = byte === CTRL_P;
      if (!this.#begun) forward.push(byte);
    }
    return { forward: Uint8Array.from(forward), detach: false };
  }
}
