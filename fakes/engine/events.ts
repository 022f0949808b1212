// SPDX-License-Identifier: Apache-2.0

/** The event stream, and the log from which past events are told. */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { instant } from "./clock.ts";
import { fail, type Filters, hasLabels, JSON_TYPE, matcher } from "./http.ts";
import type { State } from "./state.ts";

interface Event {
  status: string;
  id?: string;
  from?: string;
  Type: string;
  Action: string;
  Actor: { ID: string; Attributes: Record<string, string> };
  scope: string;
  time: number;
  timeNano: number;
}

const FILTERS: Filters<Event> = {
  type: ({ Type }, wanted) => wanted.includes(Type),
  event: ({ Action }, wanted) => wanted.includes(Action),
  label: ({ Actor }, wanted) => hasLabels(Actor.Attributes, wanted),
};

const line = (event: Event): string => `${JSON.stringify(event)}\n`;

export class Events {
  readonly #log: string;
  readonly #listeners = new Set<(event: Event) => void>();

  constructor(state: State) {
    this.#log = state.path("events.jsonl");
  }

  /** @param from the image of a container; only containers have one */
  emit(type: string, action: string, id: string, attributes: Record<string, string>, from?: string): void {
    const now = instant();
    const event: Event = {
      status: action,
      ...(type === "container" && { id, from }),
      Type: type,
      Action: action,
      Actor: { ID: id, Attributes: { image: "", podId: "", ...attributes } },
      scope: "local",
      time: Number(now / 1_000_000_000n),
      timeNano: Number(now),
    };
    appendFileSync(this.#log, line(event));
    for (const listener of this.#listeners) listener(event);
  }

  /** GET /events: with `since`, seconds since the epoch, what was; unless `stream` is false, what will be. */
  answer(query: URLSearchParams, signal: AbortSignal): Response {
    const matches = matcher(query, FILTERS);
    const follow = query.get("stream") !== "false";
    const since = Number(query.get("since") || (follow ? Infinity : 0));
    if (Number.isNaN(since)) fail(400, "invalid argument", `failed to parse time "${query.get("since")}"`);
    const past = this.#since(since).filter(matches).map(line).join("");
    if (!follow) return new Response(past, { headers: JSON_TYPE });
    let listener: (event: Event) => void;
    const close = (): void => void this.#listeners.delete(listener);
    signal.addEventListener("abort", close);
    const body = new ReadableStream<string>({
      start: (controller) => {
        // Bun sends the headers with the first bytes, and a client waits for them before it lists what exists. A
        // blank line is nothing to every JSON reader.
        controller.enqueue(`\n${past}`);
        listener = (event) => matches(event) && controller.enqueue(line(event));
        this.#listeners.add(listener);
      },
      cancel: close,
    });
    return new Response(body, { headers: JSON_TYPE });
  }

  #since(seconds: number): Event[] {
    if (seconds === Infinity || !existsSync(this.#log)) return [];
    const events = Bun.JSONL.parse(readFileSync(this.#log, "utf8")) as Event[];
    return events.filter(({ timeNano }) => timeNano >= seconds * 1e9);
  }
}
