// SPDX-License-Identifier: Apache-2.0

/** Drivers that tell a watcher too little, too much, or too late. */
import { status } from "../../../proto/grpc.ts";
import type { Interceptors, TappedWatch } from "../../../harness/runtime/faults/tap.ts";
import { mutant } from "../../../harness/conformance/mutant.ts";
import type { Event } from "../../../harness/conformance/driver.ts";
import { idIn, changedEvents, noteStopped, gone, saysStopped, onlyEvents } from "./broken.ts";

// What is not told

mutant(
  "A watch never tells of sandboxes that were made before it",
  [
    "DC-62",
    "DC-71",
    "DC-72",
    "DC-73",
    "DC-80",
    "DC-84",
    "DC-86",
    "DC-88",
    "DC-170",
    "DC-172",
    "DC-173",
    "DC-179",
  ],
  () => {
    const made = new Set<string>();
    return { ...noteCreated(made), ...silentAbout(() => [...made]) };
  },
);

mutant("A watch begins without the sandboxes that are stopped", ["DC-80", "DC-84", "DC-172"], () => {
  const stopped = new Set<string>();
  return { ...noteStopped(stopped), ...silentAbout(() => [...stopped]) };
});

mutant("A watch begins with ten sandboxes at most", ["DC-170"], () => {
  const made = new Set<string>();
  return { ...noteCreated(made), ...silentAbout(() => [...made].slice(10)) };
});

mutant("A watch that is opened amid a create misses it", ["DC-173"], () => {
  const underWay = new Set<string>();
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const id = sandbox?.id ?? "";
      underWay.add(id);
      return pass().finally(() => underWay.delete(id));
    },
    ...silentAbout(() => [...underWay]),
  };
});

mutant("A watch that is opened amid a start misses it", ["DC-84"], () => {
  const underWay = new Set<string>();
  return {
    StartSandbox: async ({ sandbox_id }, pass) => {
      underWay.add(sandbox_id);
      return pass().finally(() => underWay.delete(sandbox_id));
    },
    ...silentAbout(
      () => [...underWay],
      (event) => !saysStopped(event),
    ),
  };
});

mutant("A watch ends when nobody creates or stops anything for a while", ["DC-81"], () => {
  let busy = false;
  const noticed = <T>(_: unknown, pass: () => Promise<T>) => {
    busy = true;
    return pass();
  };
  return {
    CreateSandbox: noticed,
    StopSandbox: noticed,
    WatchSandboxes: (watch) => {
      setTimeout(() => busy || watch.end(), 200);
      return watch.send;
    },
  };
});

mutant("A stop is not told of", ["DC-80", "DC-172", "DC-180"], () => {
  const stopped = new Set<string>();
  const tell = (event: Event) => !(saysStopped(event) && stopped.has(idIn(event)));
  return { ...noteStopped(stopped), ...onlyEvents(tell) };
});

mutant("A start is not told of", ["DC-62", "DC-82", "DC-84"], () => {
  const started = new Set<string>();
  return {
    StartSandbox: (request, pass) => {
      started.add(request.sandbox_id);
      return pass();
    },
    ...onlyEvents((event) => !event.sandbox || !started.has(idIn(event))),
  };
});

mutant(
  "A create is told of when the sandbox is stopped or gone",
  [
    "DC-62",
    "DC-71",
    "DC-72",
    "DC-73",
    "DC-80",
    "DC-81",
    "DC-82",
    "DC-83",
    "DC-85",
    "DC-86",
    "DC-88",
    "DC-90",
    "DC-92",
    "DC-94",
    "DC-170",
    "DC-171",
    "DC-173",
    "DC-179",
  ],
  () => {
    const stopped = new Set<string>();
    const tell = (event: Event) => Boolean(event.deleted) || stopped.has(idIn(event));
    return { ...noteStopped(stopped), ...onlyEvents(tell) };
  },
);

mutant("A removal is not told of unless it was asked for", ["DC-83"], () => {
  const deleted = new Set<string>();
  return {
    DeleteSandbox: (request, pass) => {
      deleted.add(request.sandbox_id);
      return pass();
    },
    ...onlyEvents((event) => !event.deleted || deleted.has(idIn(event))),
  };
});

// To whom

mutant(
  "The second watcher is told nothing",
  ["DC-71", "DC-84", "DC-85", "DC-86", "DC-88", "DC-172", "DC-173", "DC-179"],
  onlyEvents((_, watch) => watch.number !== 2),
);

mutant("A driver serves ten watches in its life", ["DC-88", "DC-179"], {
  WatchSandboxes: (watch) => {
    if (watch.number > 10) watch.end(status.RESOURCE_EXHAUSTED, "too many watches");
    return watch.send;
  },
});

mutant("What a slow watcher does not read at once is dropped", ["DC-171"], () => {
  const slow = new Set<TappedWatch>();
  const look = async (watch: TappedWatch) => {
    // Of several events at once even one that reads has read none at first.
    for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate);
    if (watch.unread() > 0) slow.add(watch);
  };
  return onlyEvents((_, watch) => {
    void look(watch);
    return !slow.has(watch) || watch.unread() < 2;
  });
});

mutant("A slow watcher holds up all the others", ["DC-172"], () => {
  const watches = new Set<TappedWatch>();
  return onlyEvents((_, watch) => {
    watches.add(watch);
    return ![...watches].some((other) => other !== watch && other.unread() > 0);
  });
});

mutant("A slow watcher holds up deletions", ["DC-171", "DC-172"], () => {
  const watches = new Set<TappedWatch>();
  return {
    DeleteSandbox: async (_, pass) => {
      while ([...watches].some((watch) => watch.unread() > 0)) await Bun.sleep(20);
      return pass();
    },
    ...onlyEvents((_, watch) => Boolean(watches.add(watch))),
  };
});

// When

mutant("A watch is accepted when there is something to tell", ["DC-87"], {
  WatchSandboxes: (watch) => {
    watch.holdHeaders();
    return watch.send;
  },
});

mutant("A watch stays open when the backend is gone", ["DC-86"], {
  WatchSandboxes: (watch) => {
    watch.outlive();
    return watch.send;
  },
});

mutant("The last snapshot is told once more after the end", ["DC-89"], () => {
  const last = new Map<string, Event>();
  return {
    WatchSandboxes: (watch) => (event) => {
      watch.send(event);
      const before = last.get(idIn(event));
      if (event.deleted && before) setTimeout(() => watch.send(before), 50);
      else last.set(idIn(event), event);
    },
  };
});

// What is told wrongly

mutant(
  "Ends are told by the container's id",
  ["DC-71", "DC-72", "DC-73", "DC-83", "DC-85", "DC-89", "DC-171", "DC-172", "DC-174"],
  () => {
    const containers = new Map<string, string>();
    return changedEvents((event) => {
      const { instance_id = "" } = event.sandbox?.sandbox?.status ?? {};
      if (instance_id) containers.set(idIn(event), instance_id);
      return event.deleted ? gone(containers.get(idIn(event)) ?? "") : event;
    });
  },
);

mutant("The end of a sandbox's volume is told like a sandbox's", ["DC-174"], {
  WatchSandboxes: (watch) => (event) => {
    watch.send(event);
    if (event.deleted) watch.send(gone(`${idIn(event)}-workspace`));
  },
});

mutant("Platform events name no sandbox", ["DC-90", "DC-174"], {
  WatchSandboxes: (watch) => (event) => {
    watch.send(progress("", "openshell.progress.active_step"));
    watch.send(event);
  },
});

mutant("Progress is told under keys of the driver's own", ["DC-90"], {
  WatchSandboxes: (watch) => (event) => {
    watch.send(progress(idIn(event), "openshell.progress.percent"));
    watch.send(event);
  },
});

const progress = (sandbox_id: string, key: string): Event => ({
  sandbox: null,
  deleted: null,
  platform_event: {
    sandbox_id,
    event: {
      timestamp_ms: "0",
      source: "",
      type: "",
      reason: "Pulling",
      message: "",
      metadata: { [key]: "1" },
    },
  },
});

/** A watch keeps to itself what it should tell of these sandboxes, asked for when it is opened. */
function silentAbout(ids: () => string[], what: (event: Event) => boolean = () => true): Interceptors {
  return {
    WatchSandboxes: (watch) => {
      const silent = new Set(ids());
      return (event) => void ((silent.has(idIn(event)) && what(event)) || watch.send(event));
    },
  };
}

function noteCreated(ids: Set<string>): Interceptors {
  return {
    CreateSandbox: async ({ sandbox }, pass) => {
      const created = await pass();
      ids.add(sandbox!.id);
      return created;
    },
  };
}
