/*
 * Lets pyslurm 25.11 compile against Slurm 26.05's headers (scripts/build-pyslurm forces it in).
 *
 * Slurm 26.05 renamed one function, took away one error number, and gave the calls on a job a
 * slurm_step_id_t where they had a job id. The macros stand in front of the calls in pyslurm's
 * generated C; the declarations in slurm.h are read first and stay as they are.
 *
 * To be deleted when pyslurm has a release for the Slurm in use.
 */
#ifndef SLURM_MIG_PYSLURM_COMPAT_H
#define SLURM_MIG_PYSLURM_COMPAT_H

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)

#ifndef ESLURM_ERROR_ON_DESC_TO_RECORD_COPY
/* No longer sent by slurmctld: any number that is no error of Slurm's. */
#define ESLURM_ERROR_ON_DESC_TO_RECORD_COPY (-2026)
#endif

/* A job as a step id: every step, every component. */
static inline slurm_step_id_t slurm_mig_job(uint32_t job_id)
{
	slurm_step_id_t id = SLURM_STEP_ID_INITIALIZER;

	id.job_id = job_id;
	return id;
}

static inline int slurm_mig_pid2jobid(pid_t pid, uint32_t *job_id)
{
	slurm_step_id_t id = slurm_mig_job(NO_VAL);
	int rc = slurm_pid2jobid(pid, &id);

	*job_id = id.job_id;
	return rc;
}

#define slurm_free_ctl_conf(conf) slurm_free_conf(conf)
#define slurm_load_job(resp, id, flags) slurm_load_job(resp, slurm_mig_job(id), flags)
#define slurm_suspend(id) slurm_suspend(slurm_mig_job(id))
#define slurm_resume(id) slurm_resume(slurm_mig_job(id))
#define slurm_requeue(id, flags) slurm_requeue(slurm_mig_job(id), flags)
#define slurm_notify_job(id, text) slurm_notify_job(slurm_mig_job(id), text)
#define slurm_kill_job(id, signal, flags) slurm_kill_job(slurm_mig_job(id), signal, flags)
#define slurm_job_node_ready(id) slurm_job_node_ready(slurm_mig_job(id))
#define slurm_get_rem_time(id) slurm_get_rem_time(slurm_mig_job(id))
#define slurm_get_end_time(id, when) slurm_get_end_time(slurm_mig_job(id), when)
#define slurm_pid2jobid(pid, id) slurm_mig_pid2jobid(pid, id)

#endif
#endif
