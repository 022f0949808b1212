// SPDX-License-Identifier: Apache-2.0

/** What runs when: work on one thing in turn, and not too much at once. */

/** Runs the work of one key in the order in which it came; different keys do not wait for each other. */
export class Turns {
  readonly #last = new Map<string, Promise<void>>();

  run<Result>(key: string, work: () => Result | Promise<Result>): Promise<Result> {
    const result = (this.#last.get(key) ?? Promise.resolve()).then(work);
    const done = result.then(
      () => {},
      () => {},
    );
    this.#last.set(key, done);
    void done.then(() => this.#last.get(key) === done && this.#last.delete(key));
    return result;
  }
}

/** Lets at most `free` pieces of work run at a time. */
export class Slots {
  readonly #waiting: (() => void)[] = [];
  #free: number;

  constructor(free: number) {
    this.#free = free;
  }

  async run<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#free === 0) await new Promise<void>((ready) => this.#waiting.push(ready));
    else this.#free--;
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}
