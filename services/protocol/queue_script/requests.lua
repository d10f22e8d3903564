-- Requests: in, out, and where they stand.

-- A request is refused if it is likely to wait for more than this part of its time: estimates err, and an admitted request should be
-- served in time. Its caller learns so at once and can go elsewhere.
local HOPEFUL = 0.5

-- New requests are refused from this share of `maxmemory` on. The rest is for those in flight: events, reports, jobs.
local REQUESTS_SHARE = 0.9

-- How long a figure of the memory in use counts. Getting it takes a fifth of the time of an `enqueue`.
local ROOM_MS = 100

-- How many callers `depths` lists for each version, those with the most waiting requests.
local LISTED_CALLERS = 100

-- Bytes of memory that requests may still take; math.huge without a limit.
local function free_memory()
  local memory = redis.call("INFO", "memory")
  local function figure(name)
    return number_or(string.match(memory, "\n" .. name .. ":(%d+)"), 0)
  end
  local limit, used = figure("maxmemory"), figure("used_memory") - figure("mem_not_counted_for_evict")
  return limit == 0 and math.huge or limit * REQUESTS_SHARE - used
end

-- Whether `bytes` more fit in the share of the memory that requests may take. Requests admitted since the last figure count.
local function has_room(bytes)
  local known = redis.call("GET", K .. ":room")
  if known and tonumber(known) >= bytes then
    redis.call("SET", K .. ":room", exact(tonumber(known) - bytes), "KEEPTTL")
    return true
  end
  local room = free_memory()
  redis.call("SET", K .. ":room", exact(room - bytes), "PX", ROOM_MS)
  return room >= bytes
end

-- id, version, gateway, caller, payload, cost, weight, band, limit, caller_limit, timeout_ms, keep_alive_ms, ttl_ms, wake (a message),
-- prefixes, resumption, context_tokens, name. A request with a resumption is never refused and goes first in its band: it waited before.
-- -> {outcome, requests now waiting, position, drain rate or ""}. Outcomes:
--   "queued"    position: its place in the order, 0 if an idle worker was woken for it
--   "full"      the queue is full
--   "limited"   the caller has its share of it
--   "hopeless"  it would hardly be served in time
--   "no memory" Redis has too little left
-- For a refusal `position` is how many requests go before it.
function commands.enqueue(a)
  local version, band, caller = a.version, a.band, a.caller
  local resumed, depth = a.resumption ~= nil, depth_of(version)
  if not resumed then
    local waiting = number_or(redis.call("ZSCORE", K .. ":callers:" .. version, caller), 0)
    if waiting >= (a.caller_limit or math.huge) then
      return { "limited", depth, ahead_of_next(version, band, caller, depth), drain_rate(version) }
    elseif depth >= a.limit then
      return { "full", depth, depth, drain_rate(version) }
    elseif not has_room(#a.payload) then
      return { "no memory", depth, depth, drain_rate(version) }
    end
  end
  local finish, now = K .. ":finish:" .. version .. ":" .. band, now_ms()
  local virtual = number_or(redis.call("HGET", K .. ":vtime:" .. version, band), 0)
  local earliest = math.max(virtual, number_or(redis.call("HGET", finish, caller), 0))
  local start = resumed and virtual or math.max(earliest, after_own(version, band, caller))
  if a.timeout_ms and depth > 0 and not resumed then
    local rate, hoped_rate = known_rate(version)
    local place = rate and ahead_of_start(version, band, start) + 1
    if rate and place / hoped_rate * 1000 > HOPEFUL * a.timeout_ms then
      return { "hopeless", depth, place, exact(rate) }
    end
  end
  touch(version, a.keep_alive_ms)
  if a.context_tokens then
    request_context(version, a.context_tokens)
  end
  if a.name then
    name_version(version, a.name)
  end
  redis.call("HSET", finish, caller, exact(earliest + a.cost / a.weight))
  redis.call("PEXPIRE", finish, a.ttl_ms)
  redis.call("PEXPIRE", K .. ":vtime:" .. version, a.ttl_ms)
  local request = request_key(a.id)
  redis.call("HSET", request, "payload", a.payload, "version", version, "gateway", a.gateway, "caller", caller, "band", band,
    "weight", exact(a.weight), "start", exact(start), "cost", exact(a.cost), "at", now, "epoch", 0, "prefixes", a.prefixes)
  if a.timeout_ms then
    redis.call("HSET", request, "deadline", now + a.timeout_ms)
  end
  if resumed then
    redis.call("HSET", request, "resumption", a.resumption, "until", 0)
  end
  redis.call("PEXPIRE", request, a.ttl_ms)
  local waiting = { version = version, band = band, caller = caller, start = exact(start), at = now, prefixes = a.prefixes }
  local woken = add(a.id, waiting, a.ttl_ms, a.wake)
  return { "queued", depth + 1, woken and 0 or ahead_of(a.id, version, band) + 1, drain_rate(version) }
end

-- id, epoch, cost (what was computed) -> 1, or 0 if the request is unknown or a later claim superseded this one
function commands.settle(a)
  local request = read(request_key(a.id), "version", "band", "caller", "cost", "weight", "epoch", "worker")
  if number_or(request.epoch, -1) ~= a.epoch then
    return 0
  end
  charge(request, a.cost - tonumber(request.cost))
  if request.worker then
    redis.call("SREM", K .. ":claims:" .. request.worker, a.id)
  end
  remove(a.id, request.version, request.band, request.caller)
  redis.call("DEL", request_key(a.id))
  touch(request.version)
  return 1
end

-- id, message -> "waiting" (it has left the queue), "claimed" (its worker got the message), or "gone"
function commands.cancel(a)
  if withdraw(a.id) then
    return "waiting"
  end
  local worker = redis.call("HGET", request_key(a.id), "worker")
  if not worker then
    return "gone"
  end
  send(worker, a.message)
  return "claimed"
end

-- id -> 1 (no worker has claimed it: it has left the queue), or 0
function commands.expire(a)
  if number_or(redis.call("HGET", request_key(a.id), "epoch"), 0) > 0 then
    return 0
  end
  withdraw(a.id)
  return 1
end

-- id -> {position, drain rate or ""}, or {} if it does not wait
function commands.place(a)
  local request = read(request_key(a.id), "version", "band")
  local ahead = request.version and ahead_of(a.id, request.version, request.band)
  return ahead and { ahead + 1, drain_rate(request.version) } or {}
end

-- version -> id, epoch, gateway, flat: every waiting request, which leaves the queue
function commands.refuse(a)
  local refused = {}
  for _, id in ipairs(redis.call("ZRANGE", K .. ":arrived:" .. a.version, 0, -1)) do
    local request = read(request_key(id), "epoch", "gateway")
    if withdraw(id) then
      refused[#refused + 1] = id
      refused[#refused + 1] = tonumber(request.epoch)
      refused[#refused + 1] = request.gateway
    end
  end
  return refused
end

-- caller -> for each version that was asked for: version, waiting in each band, milliseconds that the oldest has waited (0: none), drain
-- rate or "", {caller, its waiting requests, ...}, flat. With a caller, only that one's requests are counted by caller.
function commands.depths(a)
  local now, rows = now_ms(), {}
  for _, version in ipairs(redis.call("SMEMBERS", K .. ":demand")) do
    local oldest = redis.call("ZRANGE", K .. ":arrived:" .. version, 0, 0, "WITHSCORES")
    local callers = K .. ":callers:" .. version
    rows[#rows + 1] = version
    for band = 0, BANDS - 1 do
      rows[#rows + 1] = redis.call("ZCARD", queue_of(version, band))
    end
    rows[#rows + 1] = math.max(0, now - number_or(oldest[2], now))
    rows[#rows + 1] = drain_rate(version)
    if a.caller then
      rows[#rows + 1] = { a.caller, redis.call("ZSCORE", callers, a.caller) or "0" }
    else
      rows[#rows + 1] = redis.call("ZREVRANGE", callers, 0, LISTED_CALLERS - 1, "WITHSCORES")
    end
  end
  return rows
end
