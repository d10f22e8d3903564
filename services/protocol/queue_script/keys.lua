--[[
The queue of requests. Every change to it is one call of a command, so each is atomic. Each command becomes a separate script, with the
definitions that it uses from the files in this folder (`services.protocol.lua_module`).

A call has the prefix of all keys in KEYS[1] (K below; one Redis, not a Redis Cluster), and its arguments in ARGV[1], a MessagePack map. A
missing argument is nil.

Keys. A band is 0 (interactive), 1 (normal) or 2 (batch):

  K:queue:<version>:<band>  sorted set  waiting request ids by virtual start time (start-time fair queueing)
  K:waiting:<version>:<band>:<caller>  sorted set  the same, of one caller
  K:arrived:<version>    sorted set   all waiting request ids of the version by the time (ms) of their arrival
  K:callers:<version>    sorted set   callers with waiting requests by how many they are
  K:request:<id>         hash         payload, version, gateway, caller, band, weight, start, cost (tokens), at (ms of its
                                      arrival), epoch, prefixes (see prefixes.py); until its first claim: deadline (ms) if it has one;
                                      while claimed: worker, claim; after a requeue: resumption (what the client has); after a worker
                                      left it to another one: until (ms) when it may do so
  K:vtime:<version>      hash         band -> its virtual time: the start tag of the request claimed last
  K:finish:<version>:<band>  hash     caller -> virtual finish time of that caller's newest request
  K:passed:<version>     hash         band -> claims that more urgent bands got since it was served last, while it waited
  K:drain:<version>      hash         left, busy_ms: how many requests left the queue for a worker after they had to wait, and the
                                      time during which requests waited, both decaying; at (ms): counted up to then
  K:idle:<version>       set          workers that found nothing to claim and wait for a Wake in their inbox
  K:inbox:<worker>       list         Cancel, Wake and Crash messages for one worker; it expires INBOX_MS after the newest
  K:serving:<version>    hash         worker that serves the version and is not draining -> slots that were free at its last call
  K:claims:<worker>      set          ids of the requests that the worker has claimed
  K:held:<worker>        set          digests of the prefixes that the worker's cache holds, or will after it computes what it claimed
  K:worker:<worker>      string       the worker's last WorkerReport; it expires with the lease
  K:crashed:<worker>     string       its process ended by its own fault; expires after INBOX_MS
  K:workers              sorted set   workers by the time (ms) at which their lease ends
  K:departed             sorted set   workers by the time (ms) at which they left, for DEPARTED_MS
  K:departed:<worker>    string       the last WorkerReport of a worker that left; expires after DEPARTED_MS
  K:gateways             set          gateways that have not shut down cleanly
  K:gateway:<gateway>    string       the gateway's lease: the address of its metrics; it expires with the lease
  K:replies:<gateway>    stream       what workers answer (replies.py); only the gateway creates it, only while it has its lease
  K:demand               set          versions that have been asked for
  K:demand:<version>     hash         used_at (ms), name (the model's name in the newest request that gave one), keep_alive_ms (negative:
                                      forever; missing: the platform's default), context_tokens (the longest context that a request
                                      asked for; missing: none did)
  K:room                 string       bytes of memory that requests may still take; expires after ROOM_MS
  K:signal               channel      "demand": the registry may have to load something; "registry": its rows changed

Times are Redis's own, in milliseconds. Everything that a crash could leave behind expires, except K:demand, which `forget` clears, and
K:workers, which `lost` clears.

Every script has the flag `allow-oom`: when `maxmemory` is used up, requests in flight still reach their end, and leases hold. `enqueue` refuses new requests
before that.
]]

local K = KEYS[1]
local commands = {}

local INBOX_MS = 60000
local DEPARTED_MS = 60000
local BANDS = 3

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Lua's own tostring() keeps 14 digits; a double needs 17.
local function exact(number)
  return string.format("%.17g", number)
end

local function number_or(value, default)
  return value and tonumber(value) or default
end

-- The named fields of a hash, as a table; missing ones are nil.
local function read(key, ...)
  local names, values = { ... }, redis.call("HMGET", key, ...)
  local found = {}
  for index, name in ipairs(names) do
    found[name] = values[index] or nil
  end
  return found
end

local function request_key(id)
  return K .. ":request:" .. id
end
