-- The job's life, each step in one go. KEYS[1]: the prefix of all keys; ARGV: the step, its arguments.
-- These files are one script: this one, those with the steps, end.lua.
-- Redis's own clock is the only clock. Nothing here is called by anyone but store.py.
--
-- job:ID hash        id state seq queue tenant model task priority ranks request warnings created_at
--                    ready_at started_at finished_at deadline_at fence token worker lease_until plan
--                    progress attempt:N errors crashes sends cancel deleted artifacts metrics error retry_of
--                    batch
-- queued:QUEUE zset  what claim picks from; score = priority, then age, or ready_at if that is to come
-- send zset          score = when the next hint is due
-- running zset       score = lease_until
-- deadlines zset     score = deadline_at, while queued
-- idem:TENANT:KEY    hash: id, body
-- wish:ID list       wakes the worker of a running job; the truth is job:ID cancel
-- batch:ID hash, batch:ID:jobs zset   tenant created_at total; its jobs in order
-- dead, purge zset   failed for good by faults; deleted, artifacts still to be removed
-- jobs:TENANT, jobs:TENANT:STATE zset   listing, score = created_at
-- events stream      every change

local P = KEYS[1] .. ':'
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local FINAL = {succeeded = true, failed = true, canceled = true, expired = true}
local RESEND, RESEND_MAX, CRASHES = 60, 3600, 3
local FULL = 0.9  -- of maxmemory
local OVERTAKEN, LEFT = 30, 2  -- seconds for which a job stands back for models in memory, see claim

local function job(id) return P .. 'job:' .. id end
local function get(id, ...) return redis.call('HMGET', job(id), ...) end
local function time(x) return string.format('%.6f', x) end
local function queue_score(priority, at) return tonumber(priority) * 1e11 + tonumber(at) end

local function emit(id, kind, data)
  local seq = redis.call('HINCRBY', job(id), 'seq', 1)
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', 100000, '*', 'job', id, 'seq', seq,
    'kind', kind, 'data', data or '')
end

local function move(id, state)
  local h = get(id, 'state', 'tenant', 'created_at', 'queue')
  redis.call('ZREM', P .. 'jobs:' .. h[2] .. ':' .. h[1], id)
  redis.call('ZADD', P .. 'jobs:' .. h[2] .. ':' .. state, h[3], id)
  redis.call('HSET', job(id), 'state', state)
  if state ~= 'queued' then
    redis.call('ZREM', P .. 'queued:' .. h[4], id)
    redis.call('ZREM', P .. 'send', id)
    redis.call('ZREM', P .. 'deadlines', id)
  end
  if state ~= 'running' then redis.call('ZREM', P .. 'running', id) end
  if FINAL[state] then
    redis.call('HSET', job(id), 'finished_at', time(now))
    if redis.call('HEXISTS', job(id), 'deleted') == 1 then
      redis.call('ZADD', P .. 'purge', now, id)
    end
  end
  emit(id, state)
end

-- The open attempt gets its end and its error (JSON text, '' for none).
local function close_attempt(id, err)
  local h = get(id, 'fence', 'plan')
  local name = 'attempt:' .. h[1]
  local text = redis.call('HGET', job(id), name)
  if not text then return end
  local attempt = cjson.decode(text)
  attempt.ended_at = now
  if h[2] then attempt.plan = cjson.decode(h[2]) end
  if err ~= '' then attempt.error = cjson.decode(err) end
  redis.call('HSET', job(id), name, cjson.encode(attempt))
end

local function enqueue(id, delay)
  local h = get(id, 'queue', 'priority', 'deadline_at', 'created_at')
  -- Put back at once it has its old place: it has waited already.
  local ready_at = delay > 0 and now + delay or tonumber(h[4])
  redis.call('HSET', job(id), 'ready_at', time(ready_at), 'sends', 0)
  redis.call('HDEL', job(id), 'lease_until')
  move(id, 'queued')
  redis.call('ZADD', P .. 'queued:' .. h[1], queue_score(h[2], ready_at), id)
  redis.call('ZADD', P .. 'send', now + delay, id)
  if h[3] then redis.call('ZADD', P .. 'deadlines', h[3], id) end
end

-- 'running' or 'queued' while the caller's token is the newest one, else nil. A holder whose lease
-- ran out keeps its job as long as nobody else has claimed it.
local function held(id, token)
  local h = get(id, 'state', 'token')
  if h[2] == token and not FINAL[h[1]] then return h[1] end
end

local function readopt(id)
  redis.call('HINCRBY', job(id), 'crashes', -1)
  local n = redis.call('HGET', job(id), 'fence')
  local attempt = cjson.decode(redis.call('HGET', job(id), 'attempt:' .. n))
  attempt.ended_at, attempt.error = nil, nil
  redis.call('HSET', job(id), 'attempt:' .. n, cjson.encode(attempt))
  move(id, 'running')
end

local function ready_jobs(queue, priority)
  return redis.call('ZRANGE', P .. 'queued:' .. queue, queue_score(priority, 0),
    queue_score(priority, now), 'BYSCORE', 'LIMIT', 0, 1000)
end

local function take(id, worker, nonce, lease_until, deadline_at)
  local fence = redis.call('HINCRBY', job(id), 'fence', 1)
  local token = fence .. ':' .. nonce
  redis.call('HSET', job(id), 'token', token, 'worker', worker, 'started_at', time(now),
    'lease_until', time(lease_until), 'attempt:' .. fence,
    cjson.encode({number = fence, worker = worker, started_at = now}))
  redis.call('HDEL', job(id), 'progress', 'plan')
  move(id, 'running')
  redis.call('ZADD', P .. 'running', lease_until, id)
  local h = get(id, 'request', 'errors')
  local deadline_s = deadline_at and time(tonumber(deadline_at) - now) or ''
  return {id, token, fence, h[1], deadline_s, h[2] or '[]'}
end

local step = {}
