--[[
The queue of requests: every change to it is one call of this script, so each is atomic.

Keys, all under one prefix (K below, KEYS[1] in the script; one Redis, not a Redis Cluster). A band is 0 (interactive), 1 (normal) or
2 (batch):

  K:queue:<version>:<band>  sorted set  waiting request ids by virtual start time (start-time fair queueing)
  K:waiting:<version>:<band>:<caller>  sorted set  the same, of one caller
  K:arrived:<version>    sorted set   all waiting request ids of the version by the time (ms) of their arrival
  K:callers:<version>    sorted set   callers with waiting requests by how many they are
  K:request:<id>         hash         payload, version, gateway, caller, band, weight, start, cost (tokens), at (ms of its
                                             arrival), epoch, prefixes (how its prompt begins, see prefixes.py); until it is claimed for
                                             the first time: deadline (ms) where it has one; while claimed: worker, claim; once
                                             requeued: resumption (what the client has); once it was passed over: until (ms) when it may be
  K:vtime:<version>      hash         band -> its virtual time: the start tag of the request claimed last
  K:finish:<version>:<band>  hash     caller -> virtual finish time of that caller's newest request
  K:passed:<version>     hash         band -> claims that more urgent bands got since it was served last, while it waited
  K:drain:<version>      hash         left, busy_ms: how many requests left the queue for a worker after they had to wait, and the
                                             time during which requests waited, both decaying; at (ms): counted up to then
  K:idle:<version>       set          workers that found nothing to claim and wait for a Wake in their inbox
  K:inbox:<worker>       list         Cancel, Wake and Crash messages for one worker; it expires INBOX_MS after the newest
  K:serving:<version>    hash         worker that serves the version and is not draining -> slots that it had free when it last called
  K:claims:<worker>      set          ids of the requests that the worker has claimed
  K:held:<worker>        set          digests of the prefixes that the worker's cache holds, or will once it has what it claimed
  K:worker:<worker>      string       the worker's last WorkerReport; it expires with the lease
  K:crashed:<worker>     string       its process ended by its own fault; expires after INBOX_MS
  K:workers              sorted set   workers by the time (ms) at which their lease ends
  K:demand               set          versions that have been asked for
  K:demand:<version>     hash         used_at (ms), keep_alive_ms (negative: for ever; absent: the platform's default)
  K:signal               channel      "demand": the registry may have to load something; "registry": its rows changed

Times are Redis's own, in milliseconds. Virtual times count tokens divided by the caller's weight: a request's start tag is the
later of its band's virtual time and its caller's last finish tag there, and its finish tag lies cost / weight after that, so that callers
with waiting requests advance by their weights whatever their number of requests (Goyal, Vin, Cheng: Start-Time Fair Queueing,
1996). A caller that gets tokens back (settle, cancel) does not overtake its own waiting requests with them.

More urgent bands go first. A band whose head has waited for the aging time gets a claim after every PASSES that went to more urgent
ones: it never starves, and however much of it has aged it does not hold the urgent ones up.

A worker passes a request over, for a moment, where another one has much less to do for it: it holds the beginning of the prompt in its
cache, and is not much busier. What a worker has claimed counts as held from then on, until the worker says that it holds it no longer.

Whatever a crash could leave behind expires: K:demand alone does not, which `forget` clears, and K:workers, which `lost` does.
]]

local K = KEYS[1]
local command = ARGV[1]

local INBOX_MS = 60000
local BANDS = 3
local PASSES = 4

-- The drain rate is that of about the last WINDOW_MS in which requests waited, and unknown before MEASURED_MS of that. A request
-- that was claimed within STRAIGHT_MS met a free slot: it says nothing of how fast a queue drains.
local WINDOW_MS = 30000
local MEASURED_MS = 500
local STRAIGHT_MS = 20

-- A request that a worker works on weighs as much as so many bytes of a prompt that another one would have to compute: as a prompt of 64
-- tokens does, about. A beginning that everybody shares is soon held by every worker, then.
local LOAD_BYTES = 256

-- A worker passes a request over where another one has so much less to do for it, which takes longer to compute than PASSED_MS on most
-- machines: for so long, or a tenth of what the request has waited. So many are looked at to find one that need not be passed over.
local WORTH_BYTES = 1024
local PASSED_MS = 30
local PASSED_SHARE = 0.1
local CANDIDATES = 16

-- An entry of `prefixes`: a digest, and how many bytes of the prompt it stands for (big-endian).
local DIGEST_BYTES = 8
local ENTRY_BYTES = 12

-- A request is refused where it is likely to wait for more than this part of its time: estimates err, and what it was let in for it should
-- also get. Told at once, its caller can go elsewhere, and the queue stays so short that those in it are served in time.
local HOPEFUL = 0.5

-- How many callers `depths` lists for each version, those with the most waiting requests.
local LISTED_CALLERS = 100

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

local function has_lease(worker)
  return redis.call("EXISTS", K .. ":worker:" .. worker) == 1
end

local function tell(worker, message)
  redis.call("RPUSH", K .. ":inbox:" .. worker, message)
  redis.call("PEXPIRE", K .. ":inbox:" .. worker, INBOX_MS)
end

local function digest_at(prefixes, entry)
  local before = (entry - 1) * ENTRY_BYTES
  return string.sub(prefixes, before + 1, before + DIGEST_BYTES)
end

-- How much of a prompt's beginning the worker holds. One that holds a prefix holds the shorter ones too.
local function held_bytes(worker, prefixes)
  local longest, above = 0, #prefixes / ENTRY_BYTES + 1
  while above - longest > 1 do
    local middle = math.floor((longest + above) / 2)
    if redis.call("SISMEMBER", K .. ":held:" .. worker, digest_at(prefixes, middle)) == 1 then
      longest = middle
    else
      above = middle
    end
  end
  return longest > 0 and struct.unpack(">I4", prefixes, (longest - 1) * ENTRY_BYTES + DIGEST_BYTES + 1) or 0
end

local function load_of(worker)
  return redis.call("SCARD", K .. ":claims:" .. worker) * LOAD_BYTES
end

-- The idle worker that has to do the least, for this request and for those that it has. -> whether there was one
local function wake(version, message, prefixes)
  local idle = K .. ":idle:" .. version
  local best, least = nil, math.huge
  for _, worker in ipairs(redis.call("SMEMBERS", idle)) do
    if not has_lease(worker) then
      redis.call("SREM", idle, worker)
    else
      local burden = load_of(worker) - held_bytes(worker, prefixes)
      if burden < least then
        best, least = worker, burden
      end
    end
  end
  if not best then
    return false
  end
  redis.call("SREM", idle, best)
  tell(best, message)
  return true
end

local function touch(version, keep_alive_ms)
  redis.call("SADD", K .. ":demand", version)
  redis.call("HSET", K .. ":demand:" .. version, "used_at", now_ms())
  if keep_alive_ms ~= "" then
    redis.call("HSET", K .. ":demand:" .. version, "keep_alive_ms", keep_alive_ms)
  end
end

local function queue_of(version, band)
  return K .. ":queue:" .. version .. ":" .. band
end

local function waiting_of(version, band, caller)
  return K .. ":waiting:" .. version .. ":" .. band .. ":" .. caller
end

local function depth_of(version)
  return redis.call("ZCARD", K .. ":arrived:" .. version)
end

-- Requests that left for a worker and the milliseconds in which requests waited, both as they weigh now.
local function drained(version, now)
  local field = redis.call("HMGET", K .. ":drain:" .. version, "left", "busy_ms", "at")
  local elapsed = depth_of(version) > 0 and math.max(0, now - number_or(field[3], now)) or 0
  local decay = math.exp(-elapsed / WINDOW_MS)
  return number_or(field[1], 0) * decay, number_or(field[2], 0) * decay + elapsed
end

local function count_drained(version, now, ttl_ms)
  local left, busy_ms = drained(version, now)
  redis.call("HSET", K .. ":drain:" .. version, "left", exact(left + 1), "busy_ms", exact(busy_ms), "at", now)
  redis.call("PEXPIRE", K .. ":drain:" .. version, ttl_ms)
end

-- Requests per second that leave the queue, and how many it may well be: two standard deviations above one more than were counted (of a
-- Poisson count), so that a few that took long do not say that all will. nil where that is not known.
local function known_rate(version)
  local left, busy_ms = drained(version, now_ms())
  if busy_ms >= MEASURED_MS and left > 0 then
    return left / busy_ms * 1000, (left + 1 + 2 * math.sqrt(left + 1)) / busy_ms * 1000
  end
end

-- The same as text, "" for nil.
local function drain_rate(version)
  local rate = known_rate(version)
  return rate and exact(rate) or ""
end

-- -> whether an idle worker was woken
local function add(id, version, band, caller, start, at, ttl_ms, message, prefixes)
  local arrived, callers, drain = K .. ":arrived:" .. version, K .. ":callers:" .. version, K .. ":drain:" .. version
  if depth_of(version) == 0 then
    redis.call("HSET", drain, "at", now_ms())
    redis.call("PEXPIRE", drain, ttl_ms)
  end
  redis.call("ZADD", arrived, at, id)
  redis.call("PEXPIRE", arrived, ttl_ms)
  redis.call("ZINCRBY", callers, 1, caller)
  redis.call("PEXPIRE", callers, ttl_ms)
  for _, key in ipairs({ queue_of(version, band), waiting_of(version, band, caller) }) do
    redis.call("ZADD", key, start, id)
    redis.call("PEXPIRE", key, ttl_ms)
  end
  local woken = wake(version, message, prefixes)
  if not woken then
    redis.call("PUBLISH", K .. ":signal", "demand")
  end
  return woken
end

-- -> whether it waited
local function remove(id, version, band, caller)
  if redis.call("ZREM", K .. ":arrived:" .. version, id) == 0 then
    return false
  end
  redis.call("ZREM", queue_of(version, band), id)
  redis.call("ZREM", waiting_of(version, band, caller), id)
  if tonumber(redis.call("ZINCRBY", K .. ":callers:" .. version, -1, caller)) <= 0 then
    redis.call("ZREM", K .. ":callers:" .. version, caller)
  end
  return true
end

local function charge(version, band, caller, tokens, weight)
  local key = K .. ":finish:" .. version .. ":" .. band
  local finish = redis.call("HGET", key, caller)
  if finish then
    redis.call("HSET", key, caller, exact(tonumber(finish) + tokens / tonumber(weight)))
  end
end

-- Takes a waiting request out unserved: its caller gets the tokens back. -> whether it waited
local function withdraw(id)
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "band", "caller", "cost", "weight")
  if not field[1] or not remove(id, field[1], field[2], field[3]) then
    return false
  end
  charge(field[1], field[2], field[3], -tonumber(field[4]), field[5])
  redis.call("DEL", request)
  return true
end

-- The start tag behind which a caller's next request has to stay: one float after its last waiting one.
local function behind_own(version, band, caller)
  local last = redis.call("ZREVRANGE", waiting_of(version, band, caller), 0, 0, "WITHSCORES")
  local start = number_or(last[2], -1)
  return start + math.max(start, 1) * 2 ^ -52
end

-- How many go before it as things stand; nil where it does not wait.
local function ahead_of(id, version, band)
  local ahead = redis.call("ZRANK", queue_of(version, band), id)
  if not ahead then
    return nil
  end
  for urgent = 0, band - 1 do
    ahead = ahead + redis.call("ZCARD", queue_of(version, urgent))
  end
  return ahead
end

-- How many would go before one with this start tag.
local function ahead_of_start(version, band, start)
  local ahead = redis.call("ZCOUNT", queue_of(version, band), "-inf", exact(start))
  for urgent = 0, band - 1 do
    ahead = ahead + redis.call("ZCARD", queue_of(version, urgent))
  end
  return ahead
end

-- How many go before the last waiting request of a caller in the band, that one included; `depth` where it has none there.
local function ahead_of_next(version, band, caller, depth)
  local last = redis.call("ZREVRANGE", waiting_of(version, band, caller), 0, 0)
  return last[1] and ahead_of(last[1], version, band) + 1 or depth
end

-- The band that the next claim goes to; nil where nothing waits.
local function next_band(version, now, aging_ms)
  local first = nil
  for band = 0, BANDS - 1 do
    local head = redis.call("ZRANGE", queue_of(version, band), 0, 0)
    if head[1] and not first then
      first = band
    elseif head[1] and number_or(redis.call("HGET", K .. ":passed:" .. version, band), 0) >= PASSES
      and now - number_or(redis.call("HGET", K .. ":request:" .. head[1], "at"), now) >= aging_ms then
      return band
    end
  end
  return first
end

local function note_passed(version, served, ttl_ms)
  local passed = K .. ":passed:" .. version
  redis.call("HDEL", passed, served)
  for band = served + 1, BANDS - 1 do
    if redis.call("EXISTS", queue_of(version, band)) == 1 then
      redis.call("HINCRBY", passed, band, 1)
      redis.call("PEXPIRE", passed, ttl_ms)
    end
  end
end

-- Those that the worker may leave a request to. `load` is nil where one has no free slot.
local function others_than(worker, version)
  local others = {}
  local serving = redis.call("HGETALL", K .. ":serving:" .. version)
  for index = 1, #serving, 2 do
    local other, free = serving[index], tonumber(serving[index + 1])
    if not has_lease(other) then
      redis.call("HDEL", K .. ":serving:" .. version, other)
    elseif other ~= worker then
      others[#others + 1] = { id = other, load = free > 0 and load_of(other) or nil }
    end
  end
  return others
end

-- Whether the request is better left to one of the others. Of one without a free slot only what it holds counts: it may have one soon, and
-- then it has as much to do as the others.
local function is_for_another(worker, others, prefixes)
  local own_held, own_load = held_bytes(worker, prefixes), load_of(worker)
  for _, other in ipairs(others) do
    if held_bytes(other.id, prefixes) - own_held + (other.load and own_load - other.load or 0) > WORTH_BYTES then
      return true
    end
  end
  return false
end

-- The first of the queue that the worker need not leave to another one. -> its id and its start tag, or nil, nil and the milliseconds
-- until one of them need not be left any more. The queue is not empty.
local function next_for(worker, others, version, band, now)
  local again_ms = math.huge
  local candidates = redis.call("ZRANGE", queue_of(version, band), 0, #others > 0 and CANDIDATES - 1 or 0, "WITHSCORES")
  for index = 1, #candidates, 2 do
    local id, start = candidates[index], tonumber(candidates[index + 1])
    local request = K .. ":request:" .. id
    local field = redis.call("HMGET", request, "prefixes", "until", "at")
    local ends = number_or(field[2], math.huge)
    if not field[1] or now >= ends or not is_for_another(worker, others, field[1]) then
      return id, start
    elseif not field[2] then
      ends = now + math.max(PASSED_MS, math.floor(PASSED_SHARE * (now - tonumber(field[3]))))
      redis.call("HSET", request, "until", ends)
    end
    again_ms = math.min(again_ms, ends - now)
  end
  return nil, nil, again_ms
end

local function hold(held, prefixes, ttl_ms)
  for entry = 1, #prefixes / ENTRY_BYTES do
    redis.call("SADD", held, digest_at(prefixes, entry))
  end
  redis.call("PEXPIRE", held, ttl_ms)
end

if command == "enqueue" then
  -- id, version, gateway, caller, payload, cost, weight, band, limit, caller_limit or "", timeout_ms or "", keep_alive_ms or "",
  -- ttl_ms, wake message, prefixes
  -- -> {1, requests now waiting, its place in the order (0: an idle worker was woken for it), drain rate or ""},
  -- or {0 where the queue is full, -1 where the caller has its share of it, -2 where it would hardly be begun in time, requests waiting,
  -- those before it, drain rate or ""}
  local id, version, gateway, caller, payload = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local cost, weight, band = tonumber(ARGV[7]), ARGV[8], ARGV[9]
  local limit, caller_limit = tonumber(ARGV[10]), ARGV[11] ~= "" and tonumber(ARGV[11]) or math.huge
  local timeout_ms, keep_alive_ms, ttl_ms, message, prefixes = ARGV[12], ARGV[13], ARGV[14], ARGV[15], ARGV[16]
  local depth = depth_of(version)
  if number_or(redis.call("ZSCORE", K .. ":callers:" .. version, caller), 0) >= caller_limit then
    return { -1, depth, ahead_of_next(version, band, caller, depth), drain_rate(version) }
  elseif depth >= limit then
    return { 0, depth, depth, drain_rate(version) }
  end
  local finish, now = K .. ":finish:" .. version .. ":" .. band, now_ms()
  local virtual = number_or(redis.call("HGET", K .. ":vtime:" .. version, band), 0)
  local earliest = math.max(virtual, number_or(redis.call("HGET", finish, caller), 0))
  local start = math.max(earliest, behind_own(version, band, caller))
  local rate, hoped_rate
  if timeout_ms ~= "" and depth > 0 then
    rate, hoped_rate = known_rate(version)
  end
  if rate then
    local place = ahead_of_start(version, tonumber(band), start) + 1
    if place / hoped_rate * 1000 > HOPEFUL * tonumber(timeout_ms) then
      return { -2, depth, place, exact(rate) }
    end
  end
  touch(version, keep_alive_ms)
  redis.call("HSET", finish, caller, exact(earliest + cost / tonumber(weight)))
  redis.call("PEXPIRE", finish, ttl_ms)
  redis.call("PEXPIRE", K .. ":vtime:" .. version, ttl_ms)
  local request = K .. ":request:" .. id
  redis.call("HSET", request, "payload", payload, "version", version, "gateway", gateway, "caller", caller, "band", band,
    "weight", weight, "start", exact(start), "cost", exact(cost), "at", now, "epoch", 0, "prefixes", prefixes)
  if timeout_ms ~= "" then
    redis.call("HSET", request, "deadline", now + tonumber(timeout_ms))
  end
  redis.call("PEXPIRE", request, ttl_ms)
  local woken = add(id, version, band, caller, exact(start), now, ttl_ms, message, prefixes)
  return { 1, depth + 1, woken and 0 or ahead_of(id, version, band) + 1, drain_rate(version) }

elseif command == "claim" then
  -- version, worker, capacity, ttl_ms, claim (names this call), repeated (1: its answer may have been lost, give it again), aging_ms,
  -- digests of prefixes that the worker holds no longer...
  -- -> milliseconds after which there may be something to claim that is now passed over or "", then up to `capacity` times
  -- id, epoch, payload, resumption or "", bytes of its prompt that the worker held before (0 where it is given again), flat.
  -- A worker that gets fewer than it asked for is idle from now on and will be woken. One without a lease gets nothing:
  -- what it took could not be seen as lost. A request whose deadline is over leaves the queue on the way: its gateway finds it gone.
  local version, worker, capacity, ttl_ms, claim, repeated = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
  local aging_ms = tonumber(ARGV[8])
  local claims, held, now = K .. ":claims:" .. worker, K .. ":held:" .. worker, now_ms()
  local claimed = { "" }
  local function give(id, epoch, payload, resumption, bytes)
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = tonumber(epoch)
    claimed[#claimed + 1] = payload
    claimed[#claimed + 1] = resumption or ""
    claimed[#claimed + 1] = bytes
  end
  for argument = 9, #ARGV do
    redis.call("SREM", held, ARGV[argument])
  end
  if repeated == "1" then
    for _, id in ipairs(redis.call("SMEMBERS", claims)) do
      local field = redis.call("HMGET", K .. ":request:" .. id, "epoch", "payload", "claim", "resumption")
      if field[3] == claim then
        give(id, field[1], field[2], field[4], 0)
      end
    end
  end
  if not has_lease(worker) then
    return claimed
  end
  local others = others_than(worker, version)
  while #claimed < 1 + 5 * capacity do
    local band = next_band(version, now, aging_ms)
    local id, start, again_ms
    if band then
      id, start, again_ms = next_for(worker, others, version, band, now)
    end
    if not id then
      claimed[1] = again_ms or ""
      break
    end
    local request = K .. ":request:" .. id
    local field = redis.call("HMGET", request, "payload", "caller", "resumption", "deadline", "at", "prefixes")
    if not field[1] then -- the record is gone, and with it the name of its caller
      redis.call("ZREM", queue_of(version, band), id)
      redis.call("ZREM", K .. ":arrived:" .. version, id)
    elseif field[4] and now >= tonumber(field[4]) then
      withdraw(id)
    else
      if now - tonumber(field[5]) >= STRAIGHT_MS then
        count_drained(version, now, ttl_ms)
      end
      remove(id, version, band, field[2])
      redis.call("HDEL", request, "deadline")
      redis.call("HSET", request, "worker", worker, "claim", claim)
      redis.call("SADD", claims, id)
      redis.call("PEXPIRE", claims, ttl_ms)
      local held_before = held_bytes(worker, field[6])
      hold(held, field[6], ttl_ms)
      local virtual = number_or(redis.call("HGET", K .. ":vtime:" .. version, band), 0)
      redis.call("HSET", K .. ":vtime:" .. version, band, exact(math.max(virtual, start)))
      redis.call("PEXPIRE", K .. ":vtime:" .. version, ttl_ms)
      note_passed(version, band, ttl_ms)
      give(id, redis.call("HINCRBY", request, "epoch", 1), field[1], field[3], held_before)
    end
  end
  local free = capacity - (#claimed - 1) / 5
  if free > 0 then
    redis.call("SADD", K .. ":idle:" .. version, worker)
    redis.call("PEXPIRE", K .. ":idle:" .. version, ttl_ms)
  else
    redis.call("SREM", K .. ":idle:" .. version, worker)
  end
  if redis.call("HEXISTS", K .. ":serving:" .. version, worker) == 1 then
    redis.call("HSET", K .. ":serving:" .. version, worker, free)
  end
  return claimed

elseif command == "settle" then
  -- id, epoch, actual cost -> 1, or 0 where the request is unknown or a later claim superseded this one
  local id, epoch, actual = ARGV[2], ARGV[3], tonumber(ARGV[4])
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "band", "caller", "cost", "weight", "epoch", "worker")
  local version, band, caller, cost, weight, worker = field[1], field[2], field[3], field[4], field[5], field[7]
  if field[6] ~= epoch then
    return 0
  end
  charge(version, band, caller, actual - tonumber(cost), weight)
  if worker then
    redis.call("SREM", K .. ":claims:" .. worker, id)
  end
  remove(id, version, band, caller)
  redis.call("DEL", request)
  touch(version, "")
  return 1

elseif command == "cancel" then
  -- id, cancel message -> "waiting" (it has left the queue), "claimed" (its worker was told), or "gone"
  local id, message = ARGV[2], ARGV[3]
  if withdraw(id) then
    return "waiting"
  end
  local worker = redis.call("HGET", K .. ":request:" .. id, "worker")
  if not worker then
    return "gone"
  end
  tell(worker, message)
  return "claimed"

elseif command == "expire" then
  -- id -> 1 (it never began: it has left the queue now, or has been dropped from it before), or 0 (a worker has begun with it)
  local id = ARGV[2]
  if number_or(redis.call("HGET", K .. ":request:" .. id, "epoch"), 0) > 0 then
    return 0
  end
  withdraw(id)
  return 1

elseif command == "place" then
  -- id -> {place in the order, drain rate or ""}, or {} where it does not wait
  local id = ARGV[2]
  local field = redis.call("HMGET", K .. ":request:" .. id, "version", "band")
  local ahead = field[1] and ahead_of(id, field[1], field[2])
  return ahead and { ahead + 1, drain_rate(field[1]) } or {}

elseif command == "requeue" then
  -- id, epoch, ttl_ms, wake message, resumption or "" -> 1, or 0 where the claim of that epoch is no longer the current one.
  -- The request goes back to its old place, and its epoch rises so that the lost worker's late frames are dropped.
  local id, epoch, ttl_ms, message, resumption = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local request = K .. ":request:" .. id
  local field = redis.call("HMGET", request, "version", "band", "caller", "start", "at", "epoch", "worker", "prefixes")
  if field[6] ~= epoch or not field[7] then
    return 0
  end
  redis.call("HINCRBY", request, "epoch", 1)
  redis.call("HDEL", request, "worker", "claim")
  redis.call("HSET", request, "resumption", resumption, "until", 0)
  redis.call("SREM", K .. ":claims:" .. field[7], id)
  add(id, field[1], field[2], field[3], field[4], field[5], ttl_ms, message, field[8])
  return 1

elseif command == "report" then
  -- worker, report, ttl_ms, version, wake message, free slots or "" where it claims nothing: extends the worker's lease.
  -- A Wake is lost with the worker that it went to, so each report also wakes the one that it comes from if requests wait.
  local worker, report, ttl_ms, version, message, free = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if free == "" then
    redis.call("HDEL", K .. ":serving:" .. version, worker)
  else
    redis.call("HSET", K .. ":serving:" .. version, worker, free)
    redis.call("PEXPIRE", K .. ":serving:" .. version, INBOX_MS)
  end
  redis.call("SET", K .. ":worker:" .. worker, report, "PX", ttl_ms)
  redis.call("ZADD", K .. ":workers", now_ms() + ttl_ms, worker)
  if free ~= "" and tonumber(free) > 0 and depth_of(version) > 0
    and redis.call("LLEN", K .. ":inbox:" .. worker) == 0 then
    tell(worker, message)
  end
  return 1

elseif command == "leave" then
  -- worker, version, crashed (1 or 0): ends the lease now; what it still holds becomes lost at once
  local worker, version, crashed = ARGV[2], ARGV[3], ARGV[4]
  if crashed == "1" then
    redis.call("SET", K .. ":crashed:" .. worker, "", "PX", INBOX_MS)
  end
  redis.call("DEL", K .. ":worker:" .. worker, K .. ":inbox:" .. worker, K .. ":held:" .. worker)
  redis.call("SREM", K .. ":idle:" .. version, worker)
  redis.call("HDEL", K .. ":serving:" .. version, worker)
  redis.call("ZADD", K .. ":workers", 0, worker)
  return 1

elseif command == "lost" then
  -- gateway -> id, epoch, worker, crashed (1 or 0), flat: this gateway's requests whose worker's lease has ended
  local gateway = ARGV[2]
  local lost = {}
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", K .. ":workers", "-inf", "(" .. now_ms())) do
    local claims = K .. ":claims:" .. worker
    for _, id in ipairs(redis.call("SMEMBERS", claims)) do
      local field = redis.call("HMGET", K .. ":request:" .. id, "gateway", "epoch")
      if not field[1] then
        redis.call("SREM", claims, id)
      elseif field[1] == gateway then
        lost[#lost + 1] = id
        lost[#lost + 1] = tonumber(field[2])
        lost[#lost + 1] = worker
        lost[#lost + 1] = redis.call("EXISTS", K .. ":crashed:" .. worker)
      end
    end
    if redis.call("EXISTS", claims) == 0 then
      redis.call("DEL", K .. ":held:" .. worker)
      redis.call("ZREM", K .. ":workers", worker)
    end
  end
  return lost

elseif command == "workers" then
  -- -> the reports of the workers whose lease holds
  local reports = {}
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", K .. ":workers", now_ms(), "+inf")) do
    local report = redis.call("GET", K .. ":worker:" .. worker)
    if report then
      reports[#reports + 1] = report
    end
  end
  return reports

elseif command == "touch" then
  -- version, keep_alive_ms or "": counts as a use of the version
  touch(ARGV[2], ARGV[3])
  redis.call("PUBLISH", K .. ":signal", "demand")
  return 1

elseif command == "demand" then
  -- -> for each version asked for: version, waiting, milliseconds since its last use, keep_alive_ms or "", flat
  local now = now_ms()
  local rows = {}
  for _, version in ipairs(redis.call("SMEMBERS", K .. ":demand")) do
    local field = redis.call("HMGET", K .. ":demand:" .. version, "used_at", "keep_alive_ms")
    rows[#rows + 1] = version
    rows[#rows + 1] = depth_of(version)
    rows[#rows + 1] = now - number_or(field[1], now)
    rows[#rows + 1] = field[2] or ""
  end
  return rows

elseif command == "forget" then
  -- version: it is not loaded any more; a keep_alive given for it goes with it
  if depth_of(ARGV[2]) == 0 then
    redis.call("SREM", K .. ":demand", ARGV[2])
    redis.call("DEL", K .. ":demand:" .. ARGV[2])
    return 1
  end
  return 0

elseif command == "depths" then
  -- caller or "" -> for each version asked for: version, waiting in each band, milliseconds that the oldest has waited (0: none),
  -- drain rate or "", {caller, its waiting requests, ...}, flat. With a caller only that one's requests are counted by caller.
  local only, now = ARGV[2], now_ms()
  local rows = {}
  for _, version in ipairs(redis.call("SMEMBERS", K .. ":demand")) do
    local oldest = redis.call("ZRANGE", K .. ":arrived:" .. version, 0, 0, "WITHSCORES")
    local callers = K .. ":callers:" .. version
    rows[#rows + 1] = version
    for band = 0, BANDS - 1 do
      rows[#rows + 1] = redis.call("ZCARD", queue_of(version, band))
    end
    rows[#rows + 1] = math.max(0, now - number_or(oldest[2], now))
    rows[#rows + 1] = drain_rate(version)
    if only == "" then
      rows[#rows + 1] = redis.call("ZREVRANGE", callers, 0, LISTED_CALLERS - 1, "WITHSCORES")
    else
      rows[#rows + 1] = { only, redis.call("ZSCORE", callers, only) or "0" }
    end
  end
  return rows

elseif command == "refuse" then
  -- version -> triples id, epoch, gateway, flat: every waiting request, which leaves the queue
  local version = ARGV[2]
  local refused = {}
  for _, id in ipairs(redis.call("ZRANGE", K .. ":arrived:" .. version, 0, -1)) do
    local field = redis.call("HMGET", K .. ":request:" .. id, "epoch", "gateway")
    if withdraw(id) then
      refused[#refused + 1] = id
      refused[#refused + 1] = tonumber(field[1])
      refused[#refused + 1] = field[2]
    end
  end
  return refused
end

return redis.error_reply("unknown command " .. command)
