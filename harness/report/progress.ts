// SPDX-License-Identifier: Apache-2.0

/** Live progress: the last line of a terminal says what runs, since when, and how it stands. */
import type { Verdict } from "./model.ts";
import { took } from "../base/text.ts";
import { WORDS } from "./text.ts";

/** What becomes of a scenario, by its id. */
export type ProgressEvent = { begun: string } | { ended: string; verdict: Verdict };
/** What a test process tells whoever started it: also its run's id. */
export type Told = ProgressEvent | { run: string };

/** Tells the process that started this one, if it listens. */
export const tell = (told: Told): void => void process.send?.(told);

/** Where the line is drawn: a terminal. */
export interface Screen {
  write(text: string): unknown;
  columns?: number;
}

/** How often the times in the line move on, in milliseconds. */
const TICK_MS = 250;
/** Takes away what stands in the terminal's current line. */
export const CLEAR = "\r\u001b[K";

/** The line, and what is printed above it. */
export class Progress {
  readonly #running = new Map<string, number>();
  readonly #counts = new Map<Verdict, number>();
  readonly #began: number;
  readonly #timer: Timer;
  /** What was printed last is an unfinished line, on which nothing may be drawn. */
  #midLine = false;

  constructor(
    readonly screen: Screen,
    readonly clock: () => number = () => performance.now(),
  ) {
    this.#began = clock();
    this.#timer = setInterval(() => this.#draw(), TICK_MS);
    this.#draw();
  }

  note(event: ProgressEvent): void {
    if ("begun" in event) {
      // A scenario says so again when more is known of it.
      if (!this.#running.has(event.begun)) this.#running.set(event.begun, this.clock());
    } else {
      this.#running.delete(event.ended);
      this.#counts.set(event.verdict, (this.#counts.get(event.verdict) ?? 0) + 1);
    }
    this.#draw();
  }

  /** Prints above the line. The text may end in the middle of one. */
  print(text: string): void {
    if (text === "") return;
    this.screen.write(this.#midLine ? text : CLEAR + text);
    this.#midLine = !text.endsWith("\n");
    this.#draw();
  }

  /** Takes the line away, for good. */
  end(): void {
    clearInterval(this.#timer);
    if (!this.#midLine) this.screen.write(CLEAR);
  }

  /** "12 pass, 1 FAIL · 31.0 s · DI-47 4.2 s, DI-70 2.1 s": those that run longest come first. */
  get line(): string {
    const verdicts = Object.keys(WORDS) as Verdict[];
    const seen = verdicts.filter((verdict) => this.#counts.has(verdict));
    const counts = seen.map((verdict) => `${this.#counts.get(verdict)} ${WORDS[verdict]}`);
    const running = [...this.#running].map(([id, since]) => `${id} ${took(this.clock() - since)}`);
    const parts = [counts.join(", "), took(this.clock() - this.#began), running.join(", ")];
    return parts.filter(Boolean).join(" · ");
  }

  #draw(): void {
    if (this.#midLine) return;
    // One less: a full line makes some terminals wrap.
    const width = (this.screen.columns || 80) - 1;
    const line = this.line;
    this.screen.write(CLEAR + (line.length > width ? `${line.slice(0, width - 1)}…` : line));
  }
}

/** A progress line on this process' terminal; undefined in a log, where CI reads one, and where nothing can be erased. */
export function liveProgress(): Progress | undefined {
  const { stdout, stderr, env } = process;
  const canErase = stdout.isTTY && stderr.isTTY && env.TERM !== "dumb";
  return canErase && !env.CI ? new Progress(stderr) : undefined;
}
