// SPDX-License-Identifier: Apache-2.0

/** What can be told to go wrong, as data: it crosses a control socket as JSON. */

/**
 * What to do with calls of one method that come from now on. Everything here can cross a control socket as JSON.
 * runtime/faults/rules.ts reads it from a line such as `StopSandbox: delay 3s`.
 */
export interface Rule {
  method: string;
  /** The number of the first call that it applies to, counted from now; the very next one without it. */
  from?: number;
  /** How many calls it applies to; without it, every one until the rules change. */
  times?: number;
  /** Wait this many milliseconds before passing the call on. */
  delayMs?: number;
  /** Answer with this status instead of passing the call on. */
  fail?: { code: number; message: string };
  /** Answer nothing until the caller gives up. */
  hang?: boolean;
  /** Break all connections of the gateway when the call comes, and pass nothing on. */
  drop?: boolean;
  /** Pass the call on once more, for an answer that nobody gets; of a watch, send each event twice. */
  duplicate?: boolean;
  /** Of a watch: send each second event before the one that it followed, if it comes within REORDER_MS. */
  reorder?: boolean;
  /** Of a watch: end it after so many events, with this status or with OK. */
  end?: { after: number; code?: number };
  /** Laid over each response, field by field; `null` unsets a field. */
  response?: Record<string, unknown>;
}

/** What befalls the calls of an engine that come from now on. Everything here can cross a control socket as JSON. */
export interface EngineRule {
  /** Method and path without version and query, such as "POST containers/create"; `*` stands for any characters. */
  call: string;
  /** The number of the first call that it applies to, counted from now; the very next one without it. */
  from?: number;
  /** How many calls it applies to; without it, every one until the rules change. */
  times?: number;
  /** Wait this many milliseconds before passing the call on. */
  delayMs?: number;
  /** Answer in the engine's place, in the form that Podman's errors have. */
  fail?: { status: number; message: string };
  /** Keep the call back until the rules say otherwise. */
  hang?: boolean;
  /** Pass the call on, and break the connection in the middle of the answer. */
  cut?: boolean;
  /** Break the connection, and that of each such call that is under way. */
  drop?: boolean;
  /** Lie in the answer's body: each `from` becomes `to`, which must not be longer. */
  replace?: { from: string; to: string };
}
