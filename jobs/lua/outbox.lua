-- What webhooks are told, and what came of it.

local KEPT = 30 * 86400  -- after the last try

local function delivery(id) return P .. 'delivery:' .. id end

-- An attempt at a delivery moves it ahead in the outbox, so that a lost one is made again.
local function send_at(id, at)
  redis.call('HSET', delivery(id), 'state', 'pending', 'next_at', time(at))
  redis.call('ZADD', P .. 'outbox', time(at), id)
end

tell = function(job_id, event)
  local h = get(job_id, 'webhook', 'tenant', 'deleted')
  if not h[1] or h[3] then return end
  local webhook = cjson.decode(h[1])
  for _, wanted in ipairs(webhook.events) do
    if wanted == event then
      local line = P .. 'deliveries:' .. job_id
      local id = 'whd_' .. job_id .. '_' .. redis.call('LLEN', line) + 1
      redis.call('RPUSH', line, id)
      redis.call('HSET', delivery(id), 'id', id, 'job', job_id, 'tenant', h[2], 'event', event,
        'url', webhook.url, 'attempts', 0, 'fence', 0, 'created_at', time(now))
      return send_at(id, now)
    end
  end
end

-- Whoever deletes a job is told nothing more of it.
local function forget_deliveries(job_id)
  local line = P .. 'deliveries:' .. job_id
  for _, id in ipairs(redis.call('LRANGE', line, 0, -1)) do
    redis.call('ZREM', P .. 'outbox', id)
    redis.call('DEL', delivery(id))
  end
  redis.call('DEL', line)
end

-- -> how many are due
function step.due_deliveries() return redis.call('ZCOUNT', P .. 'outbox', '-inf', now) end

-- lease -> {id, job, tenant, event, url, attempt, fence, created_at, now} | nil; it is claimed by
-- nobody else for `lease` seconds
function step.claim_delivery(lease)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'outbox', '-inf', now, 'LIMIT', 0, 1)) do
    redis.call('ZADD', P .. 'outbox', time(now + tonumber(lease)), id)
    local attempt = redis.call('HINCRBY', delivery(id), 'attempts', 1)
    local fence = redis.call('HINCRBY', delivery(id), 'fence', 1)
    local h = redis.call('HMGET', delivery(id), 'job', 'tenant', 'event', 'url', 'created_at')
    return {id, h[1], h[2], h[3], h[4], attempt, fence, h[5], time(now)}
  end
end

-- id fence state status error delay; status and error: '' for none; delay: before the next attempt,
-- if the state is 'pending'. Nothing, where the delivery is another's by now, or gone.
function step.settle_delivery(id, fence, state, status, err, delay)
  local h = redis.call('HMGET', delivery(id), 'fence', 'job')
  if h[1] ~= fence then return end
  redis.call('HSET', delivery(id), 'status', status, 'error', err)
  if state == 'pending' then return send_at(id, now + tonumber(delay)) end
  redis.call('HSET', delivery(id), 'state', state)
  redis.call('HDEL', delivery(id), 'next_at')
  if state == 'delivered' then redis.call('HSET', delivery(id), 'delivered_at', time(now)) end
  redis.call('ZREM', P .. 'outbox', id)
  redis.call('EXPIRE', delivery(id), KEPT)
  redis.call('EXPIRE', P .. 'deliveries:' .. h[2], KEPT)
end

-- id job -> 1 | nil if the job has no such delivery. It is due now, as if it were new.
function step.redeliver(id, job_id)
  if redis.call('HGET', delivery(id), 'job') ~= job_id then return nil end
  redis.call('HSET', delivery(id), 'attempts', 0)
  redis.call('HINCRBY', delivery(id), 'fence', 1)  -- an attempt of before has no say
  redis.call('HDEL', delivery(id), 'status', 'error', 'delivered_at')
  redis.call('PERSIST', delivery(id))
  redis.call('PERSIST', P .. 'deliveries:' .. job_id)
  send_at(id, now)
  return 1
end
