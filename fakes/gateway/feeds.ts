// SPDX-License-Identifier: Apache-2.0

/** What goes on with each sandbox, for whoever watches: that its record changed, its platform events, its log. */
import type { PlatformEvent__Output } from "../../proto/v0.0/types/openshell/v1/PlatformEvent.ts";
import type { SandboxLogLine__Output } from "../../proto/v0.0/types/openshell/v1/SandboxLogLine.ts";

const KEPT_LINES = 2000;
const KEPT_EVENTS = 50;

export interface Watcher {
  /** The record changed or is gone: read it again. */
  changed?(): void;
  event?(event: PlatformEvent__Output): void;
  line?(line: SandboxLogLine__Output): void;
  /** The sandbox is gone, and nothing more will come. */
  ended(): void;
}

interface Feed {
  watchers: Set<Watcher>;
  lines: SandboxLogLine__Output[];
  events: PlatformEvent__Output[];
}

export class Feeds {
  #feeds = new Map<string, Feed>();

  #of(id: string): Feed {
    let feed = this.#feeds.get(id);
    if (!feed) this.#feeds.set(id, (feed = { watchers: new Set(), lines: [], events: [] }));
    return feed;
  }

  /** Adds a watcher; the result removes it. */
  watch(id: string, watcher: Watcher): () => void {
    const { watchers } = this.#of(id);
    watchers.add(watcher);
    return () => watchers.delete(watcher);
  }

  changed(id: string): void {
    for (const watcher of this.#feeds.get(id)?.watchers ?? []) watcher.changed?.();
  }

  event(id: string, event: PlatformEvent__Output): void {
    const { watchers, events } = this.#of(id);
    events.push(event);
    if (events.length > KEPT_EVENTS) events.shift();
    for (const watcher of watchers) watcher.event?.(event);
  }

  line(line: SandboxLogLine__Output): void {
    const { watchers, lines } = this.#of(line.sandbox_id);
    lines.push(line);
    if (lines.length > KEPT_LINES) lines.shift();
    for (const watcher of watchers) watcher.line?.(line);
  }

  lastLines = (id: string, count: number) =>
    count > 0 ? (this.#feeds.get(id)?.lines.slice(-count) ?? []) : [];
  lastEvents = (id: string, count: number) =>
    count > 0 ? (this.#feeds.get(id)?.events.slice(-count) ?? []) : [];

  /** Tells the watchers of a sandbox that is gone, and forgets it. */
  end(id: string): void {
    const feed = this.#feeds.get(id);
    this.#feeds.delete(id);
    for (const watcher of feed?.watchers ?? []) {
      watcher.changed?.();
      watcher.ended();
    }
  }
}
