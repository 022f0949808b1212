// SPDX-License-Identifier: Apache-2.0

/**
 * Log lines on standard output, in the form of the real program: time, level, target, message, fields, with colour
 * codes even into a file unless NO_COLOR is set. A line with a `sandbox_id` is also one of that sandbox's own log.
 */

const LEVELS = ["error", "warn", "info", "debug", "trace"] as const;
const COLOURS = { error: 31, warn: 33, info: 32, debug: 34, trace: 35 } as const;

export type Level = (typeof LEVELS)[number];
type Fields = Record<string, string | number | boolean>;
type Write = (message: string, fields?: Fields) => void;

/** What one part of a program logs with. */
export type Logger = Record<Level, Write>;

/** Receives every line that names a sandbox, whatever the level that is printed. */
export type SandboxLines = (line: {
  sandboxId: string;
  level: Level;
  target: string;
  message: string;
}) => void;

export class Log {
  #threshold: number;
  #listener: SandboxLines = () => {};

  /** @param level a level's name, in any case; an unknown one is read as "info" */
  constructor(level: string) {
    const known = LEVELS.indexOf(level.toLowerCase() as Level);
    this.#threshold = known < 0 ? LEVELS.indexOf("info") : known;
  }

  onSandboxLine(listener: SandboxLines): void {
    this.#listener = listener;
  }

  /** A logger whose lines carry `target`, the module's name in the real program. */
  for(target: string): Logger {
    const logger = {} as Logger;
    for (const [rank, level] of LEVELS.entries()) {
      logger[level] = (message, fields = {}) => {
        if (fields.sandbox_id)
          this.#listener({ sandboxId: String(fields.sandbox_id), level, target, message });
        if (rank <= this.#threshold) process.stdout.write(format(level, target, message, fields));
      };
    }
    return logger;
  }
}

function format(level: Level, target: string, message: string, fields: Fields): string {
  const paint = (code: number, text: string) => (process.env.NO_COLOR ? text : `\x1b[${code}m${text}\x1b[0m`);
  const time = new Date().toISOString().replace("Z", "000Z");
  const pairs = Object.entries(fields).map(([name, value]) => ` ${paint(3, name)}${paint(2, "=")}${value}`);
  return `${paint(2, time)} ${paint(COLOURS[level], level.toUpperCase().padStart(5))} ${paint(2, `${target}:`)} ${message}${pairs.join("")}\n`;
}
